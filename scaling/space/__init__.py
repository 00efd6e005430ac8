"""Spaces of shapes: enumeration under constraints, exact Pareto fronts.

Imports architectures and what lies below.
"""
