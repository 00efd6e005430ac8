"""Fit a law to a run table: the front function, fits as data, refits, optima.

Imports uncertainty, solver, laws, runs and what lies below.
"""
