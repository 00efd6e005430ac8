"""Commands that train models and plan, run and evaluate sweeps, as thin Typer functions.

May import all of trainers.
"""
