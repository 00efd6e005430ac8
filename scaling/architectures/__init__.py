"""Transformer shapes: parameters, FLOPs, key-value bytes, Hugging Face configs.

Imports errors and files only.
"""
