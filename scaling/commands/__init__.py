"""The commands that fit, check, plan and plot: thin Typer functions.

Imports anything in scaling.
"""
