"""Least-squares solvers: a batched multi-start finished by SciPy.

Imports laws and what lies below.
"""
