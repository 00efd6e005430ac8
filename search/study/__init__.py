"""The Optuna study that chooses shapes to measure: problem, sampler, storage, claims of workers.

Imports time_model and engines.
"""
