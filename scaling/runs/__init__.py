"""The run table: columns, reading, validation, public tables by name.

Imports architectures and what lies below.
"""
