"""Training on accelerators: stacked proxies, CUDA graphs, distributed runs.

May import training and the layers below it.
"""
