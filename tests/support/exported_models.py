"""Small exported models."""

from pathlib import Path

import torch

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.corpus.encoding import Encoding
from shapelaw.trainers.models.hugging_face import export
from shapelaw.trainers.models.transformer import Transformer

LENGTH = 24


SHAPE = Shape(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, vocab_size=256, qk_norm=True,
)  # fmt: skip


def exported(folder: Path, shape: Shape = SHAPE, tokenizer: Encoding | None = None) -> Transformer:
    """Export a model with random weights to a folder, and return the model."""
    model = randomised_model(shape)
    export(folder, model, max_position_embeddings=LENGTH, tokenizer=tokenizer)
    return model


def randomised_model(shape: Shape) -> Transformer:
    """Make a model with random weights, so that every weight affects the output."""
    model = Transformer(shape, context_length=LENGTH)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.4, generator=generator)
    return model
