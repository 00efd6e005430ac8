"""Figures of laws, residuals, hold-outs and compute contours.

Imports checks, fitting and what lies below.
"""
