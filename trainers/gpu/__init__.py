"""Training on accelerators: stacked proxies, CUDA graphs, distributed runs.

Imports training and what lies below.
"""
