"""Blocks of architectures: each states its parameters, FLOPs per visible token and cache.

Imports errors only. Letters in formulas: d hidden size, H query heads, K key-value heads, h head
dimension, f intermediate size, V vocabulary, E experts.
"""
