"""Columns of a run table: names, units, number types and conventions of N."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

N, D = "n_non_embedding", "tokens"
# Column -> unit or meaning. A fit needs n_non_embedding (or n_total), tokens, loss and the columns
# of its law; all other columns may be missing.
COLUMNS = {
    "run_id": "name, unique in the table",
    "role": "proxy, anchor (more seeds and token counts), or confirmation of a proposal",
    "family": "architecture family",
    **dict.fromkeys(INTEGER_FIELDS, "as in a Hugging Face config"),
    "tie_word_embeddings": "true or false",
    "qk_norm": "true or false",
    "rope_theta": "base of rotary positions",
    "n_total": "parameters",
    "n_active": "parameters used per token",
    "n_non_embedding": "parameters without embedding and head",
    "tokens": "training tokens",
    "flops_6nd": "6 · n_non_embedding · tokens",
    "flops_counted": "training FLOPs with head and attention",
    "loss": "nats per token, held-out text",
    "loss_se": "standard error of the loss from sampling the held-out text, nats per token",
    "bits_per_byte": "held-out bits per byte of text",
    "seed": "initialisation",
    "data_seed": "order of the data",
    "corpus": "name and hash",
    "tokenizer": "name and hash",
    "context_length": "tokens",
    "batch_tokens": "tokens per step",
    "learning_rate": "peak, matrices",
    "schedule": "name",
    "optimizer": "name",
    "device": "name",
    "dtype": "of the arithmetic",
    "seconds": "of training, wall",
    "tokens_per_second": "of training",
    "git_commit": "of the code, or its version",
    "status": "done, failed or diverged",
}

# Further columns that a table may have, with their unit or meaning.
MORE_COLUMNS = {
    "loss_se_clusters": "clusters of loss_se: documents, or blocks of a text with few documents",
    "loss_unit": "nats or bits per token; bits are converted",
    "loss_kind": "exact, or bound: an upper bound on the loss, as of masked diffusion",
    "objective": "of training: next_token (default), masked_diffusion or block:SIZE",
    "validation": "name of the held-out text",
    "unique_tokens": "tokens of the text, before any is repeated",
    "run_group": "the training run that a checkpoint belongs to",
    "decayed": "true if the learning rate had decayed, false in mid-schedule",
    "epochs": "passes over the training text",
    "converted_from": "run whose weights a conversion begins with",
    "conversion": "direct, d2f, or block sizes with their shares of the tokens, in order",
    "parent_tokens": "training tokens of the run that was converted",
    "conversion_tokens": "training tokens of the conversion, the same as tokens",
    "hidden_act": "activation of the MLP, which says whether it has a gate",
    "learning_rate_rest": "peak, embedding and norms",
    "residual_init": "initial weights of the projections into the residual stream: scaled or zero",
    "attention": "implementation of attention: sdpa or matmul",
    "compilation": "extent of compilation: none, layers or whole",
    "config_hash": "digest of shape, tokens, recipe, seeds, text and torch version",
    "versions": "of Python, torch and NumPy",
    "loss_NAME": "nats per token on a named validation set, with loss_NAME_se",
    "bits_per_byte_NAME": "bits per byte on a named validation set, with bits_per_byte_NAME_se",
    "accuracy_NAME": "accuracy on a downstream task, with accuracy_NAME_se",
    "gated": "true: an MLP of three matrices (default), false: of two, as in GPT-2",
    "qkv_bias": "true: biases of the projections to queries, keys and values (default: false)",
    "output_bias": "true: a bias of attention's output projection (default: false)",
    "mlp_bias": "true: biases of the MLP (default: false)",
    "config": "Hugging Face config as JSON, where the columns of a shape do not say the model",
    "n_active_non_embedding": "parameters used per token, without embedding and head",
    "num_experts": "routed experts of a layer",
    "num_experts_per_tok": "routed experts that a token passes",
    "num_shared_experts": "experts that every token passes",
    "moe_intermediate_size": "width of an expert",
    "sparsity": "all / active parameters, without embeddings; 1 for dense models",
    "expert_sparsity": "experts / those that a token passes, with shared ones",
    "active_experts": "experts that a token passes, with shared ones",
    "granularity": "2 · hidden size / width of an expert",
    "aspect_ratio": "hidden size / layers",
    "hidden_over_sqrt_n": "hidden size / √(non-embedding parameters)",
    "mlp_to_attention": "MLP / attention parameters",
    "gqa": "query heads / key-value heads",
}

EXPERT_COLUMNS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
EXPERT_RATIOS = ("sparsity", "expert_sparsity", "active_experts", "granularity")

OPTIONAL_NUMERIC = {  # may be missing or zero in a row
    *("loss_se", "bits_per_byte", "n_active", "flops_6nd", "flops_counted", "context_length"),
    *("batch_tokens", "learning_rate", "seconds", "tokens_per_second", "unique_tokens"),
    *(*EXPERT_COLUMNS, "num_shared_experts", "n_active_non_embedding"),
}

NUMERIC = {
    *INTEGER_FIELDS,
    *RATIOS,
    *EXPERT_RATIOS,
    *("n_total", "n_non_embedding", "tokens", "loss"),
    *OPTIONAL_NUMERIC,
}

LOSS_KINDS = ("exact", "bound")
# Values of rows that lack them: what a loss is in tables of autoregressive models.
USUAL_LOSS = {"loss_kind": "exact", "objective": "next_token"}

# Convention -> the column that N is read from, in the order of preference.
SIZES = {
    "non-embedding": N,
    "total": "n_total",
    "active": "n_active",
    "active-non-embedding": "n_active_non_embedding",
}


def with_loss_kinds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the objective and kind of their losses, if only newer ones say them."""
    said = {name: usual for name, usual in USUAL_LOSS.items() if any(name in row for row in rows)}
    return [{**row, **{name: row.get(name, said[name]) for name in said}} for row in rows]


def columns_of(
    frame: "Mapping[str, Any] | pd.DataFrame", names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Read named columns of a table as float arrays.

    Returns
    -------
    The values of each column, (n,), by its name.

    Raises
    ------
    InputError
        The table lacks a column, or a column holds values other than numbers.
    """
    columns = {}
    for name in names:
        if name not in frame:
            available = ", ".join(map(str, frame))
            raise InputError(f"the table lacks the column `{name}`; it has {available}")
        try:
            columns[name] = np.asarray(frame[name], dtype=float)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"`{name}` must hold numbers to be used in a law, but {error}; "
                "choose another column"
            ) from None
    return columns
