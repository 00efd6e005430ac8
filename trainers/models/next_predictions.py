"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): modules for later tokens.

    h⁰ = hidden states of the model,  E = its embedding,  head = its head,  for k = 1, ..., n:
    hᵏ_i = Layer_k(M_k [norm(E(t_{i+k})); norm(hᵏ⁻¹_i)]),  p(t_{i+k+1}) = head(norm(hᵏ_i)),
    L = λ/n Σ_k mean_i -ln p(t_{i+k+1}).

Layer_k is a layer as the last one of the model. h⁰ comes after the last norm of the model and the
embedding before hᵏ⁻¹, as in the published weights (names enorm, hnorm, eh_proj and shared_head.norm
there). Only training uses these modules: a forward pass of the model does not.

Shape letters: B sequences, T positions, d hidden size, V vocabulary.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.added_loss import AddedLoss
from shapelaw.trainers.models.layer import Layer
from shapelaw.trainers.models.norms import build_norm
from shapelaw.trainers.models.visibility import TokenView

if TYPE_CHECKING:
    from shapelaw.trainers.models.transformer import Transformer


class NextPrediction(nn.Module):
    """Module that turns states and the embeddings of one later token into states, (B, T, d)."""

    def __init__(self, model: Architecture, *, attention: str) -> None:
        super().__init__()
        width, (block, _) = model.hidden_size, model.layers[-1]
        self.embedding_norm = build_norm(model.norm, width)
        self.hidden_norm = build_norm(model.norm, width)
        self.merge = nn.Linear(2 * width, width, bias=False)
        self.layer = Layer(block, attention=attention)
        self.norm = build_norm(model.norm, width)

    def forward(
        self,
        embedded: Tensor,
        hidden: Tensor,
        table: Tensor | None,
        documents: Tensor | None,
    ) -> Tensor:
        """Compute the states before the norm of the head."""
        both = torch.cat((self.embedding_norm(embedded), self.hidden_norm(hidden)), dim=-1)
        view = TokenView(count=hidden.shape[1], documents=documents)
        merged: Tensor = self.layer(self.merge(both), table, None, view)
        return merged


class NextPredictions(nn.ModuleList):
    """The modules of a model in order, with the weight λ of their loss."""

    def __init__(self, model: Architecture, weight: float, *, attention: str) -> None:
        if model.streams is not None or any(
            getattr(layer.attention, "shares_cache", False) for layer, _ in model.layers
        ):
            raise InputError(
                f"`num_nextn_predict_layers` must be 0 to train {model.model_type}, whose layers "
                f"share keys or streams, but got {model.predictions}; leave it out"
            )
        modules = [NextPrediction(model, attention=attention) for _ in range(model.predictions)]
        super().__init__(modules)
        self.weight = weight

    def losses(
        self,
        model: "Transformer",
        hidden: Tensor,
        tokens: Tensor,
        documents: Tensor | None = None,
    ) -> list[Tensor]:
        """Compute the cross-entropy of each module.

        Parameters
        ----------
        model
            The model, for its embedding, its head and its rotary positions.
        hidden
            Hidden states of the tokens but the last, (B, T, d).
        tokens
            Token ids, (B, T + 1).
        documents
            Documents of the tokens but the last, (B, T); None if all belong to one.
        """
        found, scale = [], model.architecture.embedding.scale
        for ahead, module in enumerate(cast("Iterator[NextPrediction]", iter(self)), start=1):
            count = tokens.shape[1] - 1 - ahead
            embedded = scale * model.embed_tokens(tokens[:, ahead : ahead + count])
            within = None if documents is None else documents[:, :count]
            hidden = module(embedded, hidden[:, :count], model.last_rotary(count), within)
            logits = model.logits(module.norm(hidden)).float()
            targets = tokens[:, ahead + 1 :]
            found.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        return found

    def add_to(
        self, model: "Transformer", hidden: Tensor, tokens: Tensor, documents: Tensor | None
    ) -> Tensor:
        """Return the hidden states, whose gradient includes that of λ times the mean loss."""
        if not torch.is_grad_enabled():
            return hidden
        loss = self.weight * torch.stack(self.losses(model, hidden, tokens, documents)).mean()
        added: Tensor = AddedLoss.apply(hidden, loss)
        return added


def add_predictions(model: "Transformer", weight: float, *, attention: str) -> None:
    """Give a model the modules of multi-token prediction that its config names, if it names any."""
    if weight and model.architecture.predictions:
        model.next_predictions = NextPredictions(model.architecture, weight, attention=attention)
