"""A usual request for proposals."""

from typing import Any

USUAL: dict[str, Any] = {
    "params": "1B", "tokens": "100B", "law": "paper-2510.18245", "workload": "rag@64:bfloat16",
    "engine": "roofline:h200", "baseline": "llama-3.2-1b", "convention": "non-embedding",
    "tolerance": 0.01, "layers": "16", "head_dims": "128", "vocab_size": None, "measurements": 6,
    "seed": 0, "estimated": 5,
}  # fmt: skip
