"""Names of weights in Hugging Face's checkpoints.

A family says where its checkpoints keep what the modules of the trainer hold. ``a|b|c`` are
projections whose rows one weight stacks, and ``*`` is the number of an expert in a stack of them.
``^T`` after a name is a transposed matrix, and ``^I`` one whose two projections take turns by rows.
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
# One matrix per expert, the router as a gate.
EXPERT_NAMES = {
    "mlp.router": "mlp.gate",
    "mlp.experts.gate_up_proj": "mlp.experts.*.gate_proj.weight|mlp.experts.*.up_proj.weight",
    "mlp.experts.down_proj": "mlp.experts.*.down_proj.weight",
}


@dataclass(frozen=True)
class StoredWeight:
    """Place of one weight in a checkpoint: names in the order of its rows, and its layout."""

    names: tuple[str, ...]
    transposed: bool = False
    alternating: bool = False


def stored_weight(name: str, names: Mapping[str, str]) -> StoredWeight:
    """Return where a checkpoint keeps the parameter of a model.

    Parameters
    ----------
    name
        Name of the parameter, such as ``layers.3.self_attn.qkv_proj.weight``.
    names
        Names of the family: of modules or parameters of a layer, and of the modules beside them.
        The name of a module also holds for the modules in it.
    """
    begin, path = "", name
    if name.startswith("layers."):
        _, number, path = name.split(".", 2)
        begin = f"{names['layers']}.{number}."
    module, _, leaf = path.rpartition(".")
    end = "" if path in names else f".{leaf}"
    given, *marks = (names.get(path) or _renamed(module, names)).split("^")
    return StoredWeight(
        tuple(f"{begin}{part}{end}" for part in given.split("|")),
        transposed="T" in marks and leaf != "bias",
        alternating="I" in marks,
    )


def _renamed(module: str, names: Mapping[str, str]) -> str:
    """Return the name of a module, by its own or that of the nearest one around it."""
    begin, end = module, ""
    while begin and begin not in names:
        begin, _, last = begin.rpartition(".")
        end = f".{last}{end}"
    return names[begin] + end if begin else module
