"""Corpora: the stages from text to tokens are documents, mixing, tokenizers and shards.

``preparation`` runs the stages; ``corpus`` and ``batches`` read their files. May import nothing
else of trainers.
"""
