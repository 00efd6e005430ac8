"""From a request to ranked proposals.

Imports study, time_model, engines.
"""
