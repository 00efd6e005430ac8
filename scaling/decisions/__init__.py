"""Decisions between shapes: probabilities of being best, and equivalent compute.

May import :mod:`shapelaw.scaling.fitting` and the layers below it.
"""
