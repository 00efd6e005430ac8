"""Normalisation layers."""

NORM_EPS = 1e-5
