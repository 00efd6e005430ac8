"""Checks of a fit: hold-outs, comparison of laws, identifiability, checklists.

Imports fitting and what lies below.
"""
