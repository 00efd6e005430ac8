"""Engines that measure or predict the speed of a shape under a workload, one module each."""
