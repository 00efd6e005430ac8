"""Evaluation of trained models: held-out loss and downstream tasks.

Imports objectives, corpus and models.
"""
