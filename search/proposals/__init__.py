"""The search for proposals, from a request to ranked shapes.

Imports study, time_model, engines.
"""
