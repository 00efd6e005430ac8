"""The Optuna study: problem, sampler, storage, claims of workers.

Imports time_model and engines.
"""
