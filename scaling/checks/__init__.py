"""Checks of a fit: held-out runs, comparison of laws, identifiability and checklists.

May import :mod:`shapelaw.scaling.fitting` and the layers below it.
"""
