"""Links from loss to downstream accuracy: fit, predict, read and write.

Imports runs and what lies below.
"""
