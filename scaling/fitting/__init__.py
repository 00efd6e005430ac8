"""Fits of laws to run tables: the function ``fit``, its result, refits and optima.

May import :mod:`shapelaw.scaling.uncertainty`, :mod:`shapelaw.scaling.solver`,
:mod:`shapelaw.scaling.laws`, :mod:`shapelaw.scaling.runs` and the layers below them.
"""
