"""Parallel residual streams (AltUp, arXiv 2301.13310) with per-layer token embeddings (Gemma 3n).

    s_k' = s_k + Σ_j C_kj s_j,  C = W_c r(s_a),  r(x) = tanh(W_r norm(x) / d)       (prediction)
    s_k'' = s_k' + (1 + c_k)·(layer(s_a') - s_a'),  c = W_k r(layer(s_a'))          (correction)
    s_k'' += norm(W_o (act(W_g (scale ⊙ s_a'')) ⊙ e))  for k > 0                    (embedding)

Stream a is the one that attention and MLP see. e is the embedding of the token for this layer, from
a table and from a projection of its token embedding x: (norm(W_p x / √d) + √p·table[token]) / √2.

Shape letters: P streams, B sequences, T positions, d hidden size, L layers, p width of e.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.blocks.streams import StreamsBlock
from shapelaw.trainers.models.feed_forward import activation_of
from shapelaw.trainers.models.norms import build_norm

MIN_MEAN_SQUARE = 1e-5  # of a stream before it is scaled to the size of another


class LayerStreams(nn.Module):
    """Parallel streams around attention and MLP of one layer: prediction and correction."""

    def __init__(self, block: StreamsBlock) -> None:
        super().__init__()
        d, p, number = block.hidden_size, block.token_width, block.streams
        self.active, self.clip, self.scaled = block.active, block.clip, block.scaled
        self.activation = activation_of(block.activation)
        self.router_norm = build_norm(block.norm, d)
        self.modality_router = nn.Linear(d, number, bias=False)
        self.prediction_coefs = nn.Linear(number, number**2, bias=False)
        self.correction_coefs = nn.Linear(number, number, bias=False)
        self.correct_output_scale = nn.Parameter(torch.zeros(d))
        self.per_layer_input_gate = nn.Linear(d, p, bias=False)
        self.per_layer_projection = nn.Linear(p, d, bias=False)
        self.post_per_layer_input_norm = build_norm(block.norm, d)

    def _coefficients(self, x: Tensor, projection: nn.Linear) -> Tensor:
        """Project the routes of (B, T, d), with weights that are cut in training."""
        routes = torch.tanh(self.modality_router(self.router_norm(x) / x.shape[-1]).float())
        weight = projection.weight
        if self.training:
            weight = weight.clamp(-self.clip, self.clip)
        return F.linear(routes.to(x.dtype), weight)

    def predict(self, streams: Tensor) -> Tensor:
        """Predict the streams (P, B, T, d) from each other."""
        number = streams.shape[0]
        mixing = self._coefficients(streams[self.active], self.prediction_coefs)
        return streams + torch.einsum(
            "btkj,jbtd->kbtd", mixing.unflatten(-1, (number, number)), streams
        )

    def correct(self, predicted: Tensor, updated: Tensor, token_input: Tensor) -> Tensor:
        """Correct the streams (P, B, T, d) by the updated one, and add the embeddings (B, T, p)."""
        factors = 1 + self._coefficients(updated, self.correction_coefs)
        change = updated - predicted[self.active]
        streams = predicted + change * factors.permute(2, 0, 1).unsqueeze(-1)
        active = streams[self.active]
        gate = self.per_layer_input_gate(
            active * self.correct_output_scale if self.scaled else active
        )
        added = self.per_layer_projection(self.activation(gate) * token_input)
        added = self.post_per_layer_input_norm(added)
        return torch.cat((streams[:1], streams[1:] + added))


class Streams(nn.Module):
    """Parallel streams of a model: made before its first layer, merged after its last."""

    def __init__(self, block: StreamsBlock, layers: int) -> None:
        super().__init__()
        d, self.width = block.hidden_size, block.token_width
        self.embed_tokens_per_layer = nn.Embedding(block.token_vocab, layers * self.width)
        self.per_layer_model_projection = nn.Linear(d, layers * self.width, bias=False)
        self.per_layer_projection_norm = build_norm(block.norm, self.width)
        others = range(block.streams - 1)
        self.altup_projections = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in others)
        self.altup_unembed_projections = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in others)

    def token_inputs(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Compute the embeddings of tokens (B, T) for each layer, (B, T, L, p).

        Tokens beyond the table have that of token 0. ``x`` are the token embeddings, (B, T, d).
        """
        projected = self.per_layer_model_projection(x) * x.shape[-1] ** -0.5
        projected = self.per_layer_projection_norm(projected.unflatten(-1, (-1, self.width)))
        tokens = torch.where(tokens < self.embed_tokens_per_layer.num_embeddings, tokens, 0)
        table = self.embed_tokens_per_layer(tokens).view_as(projected)
        return (projected + table * self.width**0.5) * 2**-0.5

    def expand(self, x: Tensor) -> Tensor:
        """Make the streams (P, B, T, d) of token embeddings (B, T, d), all of one size."""
        others = [_scaled_like(projection(x), x) for projection in self.altup_projections]
        return torch.stack((x, *others))

    def merge(self, streams: Tensor) -> Tensor:
        """Average the streams (P, B, T, d), projected and of one size -> (B, T, d)."""
        first, *others = streams.unbind()
        projected = [
            _scaled_like(projection(stream), first)
            for projection, stream in zip(self.altup_unembed_projections, others, strict=True)
        ]
        return torch.stack((first, *projected)).mean(dim=0)


def _scaled_like(x: Tensor, other: Tensor) -> Tensor:
    """Scale vectors (..., d) to the root mean square of others."""
    size = x.square().mean(dim=-1, keepdim=True).clamp(min=MIN_MEAN_SQUARE).sqrt()
    return x * other.square().mean(dim=-1, keepdim=True).sqrt() / size
