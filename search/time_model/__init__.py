"""A model of serving time, fitted to an engine's measurements.

Imports engines.
"""
