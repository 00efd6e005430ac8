"""Comparison of architecture families at one budget: models, runs, statistics and figure.

May import engines, workload, trainers and scaling.
"""
