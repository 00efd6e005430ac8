"""The whole loop as stages: train, fit, search, confirm.

Imports anything in search but commands.
"""
