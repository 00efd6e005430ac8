"""Training objectives: losses of a model on a batch.

Imports models.
"""
