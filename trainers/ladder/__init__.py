"""Ladders of proxy runs: space-filling designs, their cost and the learning-rate check.

May import sweep, training and the layers below them.
"""
