"""Recipes and optimisers: Muon, AdamW, schedules, learning-rate rules.

May import models; the recipe imports nothing else of trainers.
"""
