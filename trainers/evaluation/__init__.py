"""Evaluation of trained models: held-out loss and downstream tasks.

May import objectives, corpus and models.
"""
