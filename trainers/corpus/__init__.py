"""Text to tokens: documents, mixtures, tokenizers, shards, batches.

Imports nothing else of trainers.
"""
