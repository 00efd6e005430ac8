"""Qwen3 by loops over single numbers in float64: who sees whom is a function of two tokens.

Nothing here is taken from the models under test but their weights. The model has 4 query heads and
2 key-value heads of 4, an MLP of 10, and 2 layers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}


def earlier(i: int, j: int) -> bool:
    return j <= i


def back(t: int, j: int) -> int | None:
    return t - j if t >= j else None


@dataclass
class Loops:
    """Weights of a model, its Canon layers, and the rules of its masks.

    ``sees(i, j)`` tells whether token i sees token j, ``source(t, j)`` which token the tap j of a
    convolution reads at token t, None for zeros. ``positions`` are those of the tokens. Layers
    without rotary positions scale queries by a ``temperature`` (a, b). In a model with ``shared``
    keys the second layer reads those of the first.
    """

    model: torch.nn.Module
    places: str = ""
    kernel: int = 4
    sees: Callable[[int, int], bool] = earlier
    source: Callable[[int, int], int | None] = back
    positions: Sequence[int] | None = None
    temperature: tuple[float, float] | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        self.weights = {
            name: weight.detach().double().numpy() for name, weight in self.model.named_parameters()
        }
        self.heads: np.ndarray | None = None

    def canon(self, place: str, name: str, rows: np.ndarray) -> np.ndarray:
        if place not in self.places:
            return rows
        taps, out = self.weights[name][:, 0], rows.copy()
        for t in range(len(rows)):
            for j in range(self.kernel):
                if (read := self.source(t, j)) is not None:
                    for channel in range(rows.shape[1]):
                        newest_last = taps[channel][self.kernel - 1 - j]
                        out[t, channel] += newest_last * rows[read, channel]
        return out

    def norm(self, name: str, row: np.ndarray) -> np.ndarray:
        return row / math.sqrt(float(np.mean(row**2)) + 1e-6) * self.weights[name]

    def rotated(self, row: np.ndarray, token: int) -> np.ndarray:
        position = token if self.positions is None else self.positions[token]
        if self.temperature is not None:
            return row
        out = np.empty(4)
        for pair in range(2):
            angle = position * 10_000.0 ** (-pair / 2)
            a, b = row[pair], row[pair + 2]
            out[pair] = a * math.cos(angle) - b * math.sin(angle)
            out[pair + 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def hotter(self, token: int) -> float:
        if self.temperature is None:
            return 1.0
        share, step = self.temperature
        position = token if self.positions is None else self.positions[token]
        return 1 + share * math.log(1 + math.floor((position + 1) / step))

    def attention(self, begin: str, rows: np.ndarray) -> np.ndarray:
        projected = self.weights.get(f"{begin}.qkv_proj.weight")
        if projected is None:
            projected = self.weights[f"{begin}.q_proj.weight"]
        qkv = self.canon("B", f"{begin}.canon.weight", rows @ projected.T)
        keys, norms = qkv, begin
        if self.shared and self.heads is not None:
            keys, norms = self.heads, "layers.0.self_attn"
        self.heads = keys
        sinks = self.weights.get(f"{begin}.sinks")
        out = np.zeros((len(rows), 16))
        for head in range(4):
            key, value = 16 + 4 * (head // 2), 24 + 4 * (head // 2)
            for t in range(len(rows)):
                q = self.norm(f"{begin}.q_norm.weight", qkv[t, 4 * head : 4 * head + 4])
                seen = [s for s in range(len(rows)) if self.sees(t, s)]
                scores = [
                    self.rotated(q, t)
                    @ self.rotated(self.norm(f"{norms}.k_norm.weight", keys[s, key : key + 4]), s)
                    * self.hotter(t)
                    / 2
                    for s in seen
                ]
                shares = np.exp(np.array(scores))
                total = shares.sum() + (0 if sinks is None else math.exp(sinks[head]))
                for s, share in zip(seen, shares, strict=True):
                    out[t, 4 * head : 4 * head + 4] += share / total * keys[s, value : value + 4]
        return out @ self.weights[f"{begin}.o_proj.weight"].T

    def mlp(self, begin: str, rows: np.ndarray) -> np.ndarray:
        both = self.canon(
            "D", f"{begin}.canon.weight", rows @ self.weights[f"{begin}.gate_up_proj.weight"].T
        )
        gate, up = both[:, :10], both[:, 10:]
        return (gate / (1 + np.exp(-gate)) * up) @ self.weights[f"{begin}.down_proj.weight"].T

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        x, self.heads = self.weights["embed_tokens.weight"][tokens], None
        for layer in range(2):
            begin = f"layers.{layer}"
            rows = np.stack([self.norm(f"{begin}.input_layernorm.weight", row) for row in x])
            rows = self.canon("A", f"{begin}.canon_a.weight", rows)
            x = x + self.attention(f"{begin}.self_attn", rows)
            name = f"{begin}.post_attention_layernorm.weight"
            rows = np.stack([self.norm(name, row) for row in x])
            x = x + self.mlp(f"{begin}.mlp", self.canon("C", f"{begin}.canon_c.weight", rows))
        x = np.stack([self.norm("norm.weight", row) for row in x])
        return x @ self.weights["lm_head.weight"].T
