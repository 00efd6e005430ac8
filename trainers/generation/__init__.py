"""Decoding: caches, products and loops that generate tokens.

Imports models.
"""
