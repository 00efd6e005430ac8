"""One training run: spec, loop, checkpoints, results and trackers.

May import evaluation, objectives, optimizers, corpus and models.
"""
