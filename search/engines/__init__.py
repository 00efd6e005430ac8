"""Tokens per second of a shape under a serving workload, one module per engine."""
