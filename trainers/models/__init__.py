"""Torch models of a shape, and their files.

Imports scaling.architectures.
"""
