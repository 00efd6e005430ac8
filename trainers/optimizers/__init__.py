"""Recipes and optimisers: Muon, AdamW, schedules, learning-rate rules.

Imports models; the recipe imports nothing of trainers.
"""
