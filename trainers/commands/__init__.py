"""The commands that train, plan, evaluate and keep sweeps: thin Typer functions.

Imports anything in trainers.
"""
