"""PyTorch models of a shape, and their export to files.

May import scaling.architectures.
"""
