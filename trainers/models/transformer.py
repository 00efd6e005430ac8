"""The transformer that an architecture describes: embedding, layers, last norm and output head.

No part of this module depends on the family. This module does not depend on training.

Shape letters of tensors: B sequences, T positions, d hidden size, V vocabulary.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_config import architecture_of
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.attention import LayerCache, SharedKeys
from shapelaw.trainers.models.convolution import CausalConvolution
from shapelaw.trainers.models.layer import Layer
from shapelaw.trainers.models.mixture_of_experts import TokenRouter
from shapelaw.trainers.models.next_predictions import NextPredictions
from shapelaw.trainers.models.norms import OnePlusRMSNorm, build_norm
from shapelaw.trainers.models.rotary import rotary_table
from shapelaw.trainers.models.streams import Streams
from shapelaw.trainers.models.visibility import CAUSAL, TokenView, Visibility

# Initial scale of the output projections of attention and MLP, as a multiple of the usual scale.
RESIDUAL_INITS = {"scaled": 1.0, "zero": 0.0}
BALANCE_RATE = 0.001  # change of a balance bias in one step (DeepSeek-V3)


class Transformer(nn.Module):
    """Decoder-only language model.

    Parameters
    ----------
    model
        Shape or architecture of the model. A tied output head shares the weight of the embedding.
    context_length
        Longest sequence in tokens, cached tokens included.
    attention
        ``"sdpa"`` (PyTorch's fused kernel) or ``"matmul"`` (attention scores computed explicitly).

    Attributes
    ----------
    shape : Shape
        The shape; only of a model that was built from one.
    """

    shape: Shape
    rotary_0: Tensor

    def __init__(
        self, model: Shape | Architecture, *, context_length: int, attention: str = "sdpa"
    ) -> None:
        super().__init__()
        if isinstance(model, Shape):
            self.shape = model
        architecture = self.architecture = architecture_of(model)
        embedding, width = architecture.embedding, architecture.embedding.hidden_size
        if embedding.positions and context_length > embedding.positions:
            raise InputError(
                f"`context_length` must be at most {embedding.positions}, the learned positions, "
                f"but got {context_length}"
            )
        self.embed_tokens = nn.Embedding(embedding.vocab_size, width)
        if embedding.positions:
            self.embed_positions = nn.Embedding(embedding.positions, width)
        if embedding.norm is not None:
            self.embedding_norm = build_norm(embedding.norm, width)
        self.layers = nn.ModuleList(
            Layer(layer, attention=attention) for layer in architecture.each_layer()
        )
        streams = architecture.streams
        self.model_streams = (
            None if streams is None else Streams(streams, architecture.num_hidden_layers)
        )
        self.shares_keys = any(
            isinstance(layer.attention, AttentionBlock) and layer.attention.shares_cache
            for layer, _ in architecture.layers
        )
        self.norm = build_norm(architecture.norm, width)
        self.lm_head = nn.Linear(width, embedding.vocab_size, bias=False)
        if embedding.tied:
            self.lm_head.weight = self.embed_tokens.weight
        rotaries = [layer.attention.rotary for layer in architecture.each_layer()]
        self._rotaries = list(dict.fromkeys(rotary for rotary in rotaries if rotary))
        self._table_of = [self._rotaries.index(rotary) if rotary else None for rotary in rotaries]
        self.set_context_length(context_length)
        self.next_predictions: NextPredictions | None = None  # only in training

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the vocabulary."""
        return self.embed_tokens.num_embeddings

    @property
    def mask_token(self) -> int | None:
        """Token that stands for a hidden one in masked diffusion; None in other models."""
        return self.architecture.embedding.mask_token

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, d."""
        return self.embed_tokens.embedding_dim

    @property
    def rotary(self) -> Tensor:
        """Table of rotary positions of a model whose layers share one, (2, positions, h)."""
        return self.rotary_0

    def last_rotary(self, count: int) -> Tensor | None:
        """Return the rotary positions of the last layer for the first tokens, (2, count, h)."""
        which = self._table_of[-1]
        return None if which is None else getattr(self, f"rotary_{which}")[:, :count]

    def set_context_length(self, length: int) -> None:
        """Set the longest sequence in tokens: compute the tables of rotary positions."""
        self.context_length = length
        blocks = (layer.attention for layer, _ in self.architecture.layers)
        dims = {block.rotary: int(block.rotated_dimensions) for block in blocks if block.rotary}
        for index, rotary in enumerate(self._rotaries):
            table = rotary_table(length, dims[rotary], rotary)
            table = table.to(self.embed_tokens.weight.device)
            self.register_buffer(f"rotary_{index}", table, persistent=False)

    def initialise(self, seed: int, residual_init: str = "scaled") -> None:
        """Draw every weight from one seed.

        Matrices are normal with standard deviation 1/√fan_in; embeddings have 0.02. Norms begin as
        plain ones; biases and sinks are 0. The matrices that write to the residual stream are also
        divided by √(2·layers), as in GPT-2. Convolutions of k taps are uniform between ±1/√k.

        Parameters
        ----------
        seed
            Seed of the random generator. The global generator is not used.
        residual_init
            ``"scaled"`` as above, or ``"zero"``: the matrices that write to the residual stream are
            0, so that every layer is the identity at first (arXiv 1901.09321).
        """
        generator = torch.Generator().manual_seed(seed)
        residual = RESIDUAL_INITS[residual_init] / math.sqrt(
            2 * self.architecture.num_hidden_layers
        )
        zeros = self._zero_vectors()
        convolutions = {
            f"{name}.weight": module.kernel**-0.5
            for name, module in self.named_modules()
            if isinstance(module, CausalConvolution)
        }
        tables = {f"{n}.weight" for n, m in self.named_modules() if isinstance(m, nn.Embedding)}
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name in convolutions:
                    bound = convolutions[name]
                    weight.uniform_(-bound, bound, generator=generator)
                    continue
                if not is_matrix(name, weight):
                    weight.fill_(0.0 if name in zeros else 1.0)
                    continue
                scale = 0.02 if name in tables else 1 / math.sqrt(weight.shape[-1])
                if name.removesuffix(".weight").endswith(("o_proj", "down_proj", "out_proj")):
                    scale *= residual
                weight.normal_(0.0, scale, generator=generator)
            for name, buffer in self.tensors().items():
                if name.endswith("balance_bias"):
                    buffer.zero_()

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: list[LayerCache] | None = None,
        start: int = 0,
        visibility: Visibility = CAUSAL,
        documents: Tensor | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """Compute the hidden states after the last norm.

        Parameters
        ----------
        tokens
            Token ids, (B, T).
        cache
            Keys and values of each layer; the new ones are written into it.
        start
            Position of the first token. With a cache, the tokens also see the cached ones before
            it.
        visibility
            Kind of attention mask. Convolutions are causal in every kind.
        documents
            Document of each token, (B, T), integers: a token sees those of its own document only,
            and convolutions begin anew in each. Padding is a document of its own. With a cache,
            (B, start + T).
        keep
            Number of new tokens, the first ones, that are written to the cache; None for all.

        Returns
        -------
        torch.Tensor
            Hidden states, (B, T, d).

        Raises
        ------
        InputError
            The arguments do not fit together; see
            :meth:`shapelaw.trainers.models.visibility.TokenView.check`.
        """
        view = TokenView(
            visibility=visibility,
            start=start,
            count=tokens.shape[1],
            keep=keep,
            documents=documents,
        )
        view.check(cached=cache is not None)
        x = self._embed(tokens, view)
        tables = [view.rows_of(getattr(self, f"rotary_{i}"), 1) for i in range(len(self._rotaries))]
        shared: SharedKeys | None = {} if self.shares_keys else None
        inputs: tuple[Tensor, ...] | None = None
        if self.model_streams is not None:
            inputs = self.model_streams.token_inputs(tokens, x).unbind(2)
            x = self.model_streams.expand(x)
        for index, layer in enumerate(self.layers):
            which = self._table_of[index]
            table = None if which is None else tables[which]
            kept = None if cache is None else cache[index]
            x = layer(x, table, kept, view, shared, None if inputs is None else inputs[index])
        x = self.norm(x if self.model_streams is None else self.model_streams.merge(x))
        return self._shift(x, view, cached=cache is not None)

    def _shift(self, hidden: Tensor, view: TokenView, *, cached: bool) -> Tensor:
        """Move hidden states, (B, T, d), to the tokens that they predict in a shifted model.

        The first token of a document has its own state.
        """
        if not self.architecture.embedding.shifted:
            return hidden
        if view.visibility.kind != "full" or cached or view.start:
            raise InputError(
                "a model with `shift_predictions` must see whole sequences in both directions, "
                f"without a cache, but got {view.visibility.kind} visibility; use a model that "
                "predicts the token at each position"
            )
        moved = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
        if view.documents is None:
            return moved
        begins = F.pad(view.documents.diff(dim=1) != 0, (1, 0), value=True)
        return torch.where(begins[..., None], hidden, moved)

    def _embed(self, tokens: Tensor, view: TokenView) -> Tensor:
        """Look up tokens, (B, T) -> (B, T, d)."""
        embedding = self.architecture.embedding
        x = self.embed_tokens(tokens)
        if embedding.scale != 1.0:
            x = x * torch.tensor(embedding.scale, dtype=x.dtype, device=x.device)
        if embedding.positions:
            x = x + view.rows_of(self.embed_positions.weight, 0)
        return self.embedding_norm(x) if embedding.norm is not None else x

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits, (..., V), from hidden states (..., d); a mask token is never predicted.

        They are those of the next token, or of the token itself in a model with a mask token.
        """
        logits, cap = self.lm_head(hidden), self.architecture.embedding.logit_cap
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        if self.mask_token is not None:
            logits[..., self.mask_token] = -math.inf
        return logits

    def empty_cache(self, batch: int, length: int, *, dtype: torch.dtype) -> list[LayerCache]:
        """Create a zeroed cache for ``batch`` sequences of at most ``length`` tokens."""
        device = self.embed_tokens.weight.device
        return [
            layer.empty_cache(batch, length, dtype=dtype, device=device) for layer in self._layers()
        ]

    def _layers(self) -> Iterator[Layer]:
        return cast("Iterator[Layer]", iter(self.layers))

    def _zero_vectors(self) -> set[str]:
        """Return the names of the vectors that begin as 0: biases, sinks, norms of 1 + w."""
        vectors = {n for n, w in self.named_parameters() if not is_matrix(n, w)}
        offsets = (n for n, m in self.named_modules() if isinstance(m, OnePlusRMSNorm))
        plain = {name for name in vectors if not name.endswith("weight")}
        return plain | {f"{name}.weight" for name in offsets}

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers that belong to a checkpoint; a tied head appears once."""
        kept = self.state_dict(keep_vars=True).keys()
        buffers = {name: value for name, value in self.named_buffers() if name in kept}
        return {**dict(self.named_parameters()), **buffers}

    def balance_experts(self, rate: float = BALANCE_RATE) -> dict[str, float]:
        """Move the balance biases of all routers after a step, and measure the balance.

        Parameters
        ----------
        rate
            Change of a bias in one step.

        Returns
        -------
        dict
            ``expert_imbalance``: largest load of an expert over the mean of its layer, minus 1, in
            the layer where it is largest; empty without experts.
        """
        routers = [module for module in self.modules() if isinstance(module, TokenRouter)]
        imbalances = [router.balance(rate) for router in routers]
        return {"expert_imbalance": max(imbalances)} if imbalances else {}

    def _layer_matrices(self) -> dict[str, nn.Parameter]:
        return {
            name: weight
            for name, weight in self.named_parameters()
            if name.startswith(("layers.", "next_predictions.")) and is_matrix(name, weight)
        }

    def matrices(self) -> Iterator[nn.Parameter]:
        """Return the weight matrices of the layers and stacks of them, which Muon updates."""
        return iter(self._layer_matrices().values())

    def rows(self) -> dict[str, tuple[int, ...]]:
        """Return the number of rows of each projection that one weight stacks, by its name.

        A name has no ``.weight`` or ``bias`` at its end.
        """
        return {
            f"{name}.{weight}": sizes
            for name, module in self.named_modules()
            for weight, sizes in getattr(module, "parts", {}).items()
        }

    def pieces(self) -> list[tuple[int, ...]]:
        """Return the number of rows of each projection stacked in each of :meth:`matrices`."""
        rows = self.rows()
        return [
            rows.get(name.removesuffix(".weight"), (weight.shape[-2],))
            for name, weight in self._layer_matrices().items()
        ]


def is_matrix(name: str, weight: Tensor) -> bool:
    """Return True for a matrix or a stack of them; False for vectors, biases and convolutions."""
    stack = weight.ndim == 3 and weight.shape[1] > 1  # a depthwise convolution has one row
    return (weight.ndim == 2 or stack) and not name.endswith("bias")
