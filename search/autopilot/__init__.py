"""The loop of ``quickstart`` in stages: train, fit, search, confirm, report.

Imports all of search but commands.
"""
