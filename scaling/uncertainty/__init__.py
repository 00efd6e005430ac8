"""Intervals of parameters: profiles, resampling, robust covariances.

Imports solver, laws, runs and what lies below.
"""
