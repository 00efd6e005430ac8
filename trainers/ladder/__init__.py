"""Ladders of proxy runs: space-filling plans, their price, the learning-rate check.

Imports sweep, training and what lies below.
"""
