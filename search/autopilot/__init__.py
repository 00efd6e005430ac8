"""The loops that train: ``quickstart`` in one pass, and ``autopilot`` in rounds until it is sure.

Imports all of search but commands.
"""
