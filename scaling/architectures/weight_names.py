"""Names of weights in Hugging Face's checkpoints.

A family says where its checkpoints keep what the modules of the trainer hold. ``a|b|c`` are
projections whose rows one weight stacks, ``^T`` after a name is a transposed matrix, and ``*`` is
the number of an expert in a stack of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

LLAMA_NAMES = {
    "embed_tokens": "model.embed_tokens",
    "layers": "model.layers",
    "norm": "model.norm",
    "self_attn.qkv_proj": "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj",
    "mlp.gate_up_proj": "mlp.gate_proj|mlp.up_proj",
    "canon_a": "canonA",
    "self_attn.canon": "self_attn.canonB",
    "canon_c": "canonC",
    "mlp.canon": "mlp.canonD",
}


@dataclass(frozen=True)
class StoredWeight:
    """Where a checkpoint keeps one weight: names in the order of its rows, and its layout."""

    names: tuple[str, ...]
    transposed: bool = False


def stored_weight(name: str, names: Mapping[str, str]) -> StoredWeight:
    """Return where a checkpoint keeps the parameter of a model.

    Parameters
    ----------
    name
        Name of the parameter, such as ``layers.3.self_attn.qkv_proj.weight``.
    names
        Names of the family: of modules or parameters of a layer, and of the modules beside them.
    """
    begin, path = "", name
    if name.startswith("layers."):
        _, number, path = name.split(".", 2)
        begin = f"{names['layers']}.{number}."
    module, _, leaf = path.rpartition(".")
    end = "" if path in names else f".{leaf}"
    given = names.get(path) or names.get(module, module)
    transposed = given.endswith("^T")
    parts = given.removesuffix("^T").split("|")
    return StoredWeight(
        tuple(f"{begin}{part}{end}" for part in parts), transposed and leaf == "weight"
    )
