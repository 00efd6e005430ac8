"""Commands that fit, check, plan and plot, as thin Typer functions.

May import every folder of scaling.
"""
