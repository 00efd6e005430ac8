"""Design of experiments: which runs to train next under a FLOP budget.

Imports fitting and what lies below.
"""
