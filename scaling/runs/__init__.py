"""Run tables: columns, reading, validation, and public tables by name.

Imports architectures and the layers below them.
"""
