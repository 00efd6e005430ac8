"""Scaling laws as formulas: bases, factors, terms and their composition.

Imports runs and what lies below.
"""
