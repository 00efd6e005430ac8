"""One training run: spec, loop, checkpoints, results, trackers.

Imports evaluation, objectives, optimizers, corpus and models.
"""
