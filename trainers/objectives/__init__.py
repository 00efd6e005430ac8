"""Training objectives: losses of a model on a batch.

May import models.
"""
