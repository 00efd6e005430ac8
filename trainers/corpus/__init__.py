"""Text to tokens, in the order of the stages: documents, mixing, tokenizers, shards.

``preparation`` runs them; ``corpus`` and ``batches`` read what they wrote. Imports nothing else of
trainers.
"""
