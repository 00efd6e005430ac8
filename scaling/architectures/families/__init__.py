"""Families: one file each, with the config fields, their defaults and the blocks of each layer.

Imports blocks, architecture and config_fields only.
"""
