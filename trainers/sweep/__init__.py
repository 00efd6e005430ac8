"""Sweeps: workers that train the runs of a plan, started by launchers.

May import ledger, gpu, training and the layers below them.
"""
