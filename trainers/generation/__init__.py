"""Decoding: key-value caches, matrix-vector products and loops that generate tokens.

May import models.
"""
