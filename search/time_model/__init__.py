"""The model of serving time that is fitted to an engine's measurements.

Imports engines.
"""
