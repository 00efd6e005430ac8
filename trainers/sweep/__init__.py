"""Sweeps: workers that train the runs of a plan, started by launchers.

Imports ledger, gpu, training and what lies below.
"""
