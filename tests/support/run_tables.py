"""Small valid run table."""

import pandas as pd

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "tie_word_embeddings": True,
    "qk_norm": False,
}


def run_table(rows: int = 4, **columns: object) -> pd.DataFrame:
    """Make a valid run table, with some columns replaced or added."""
    frame = pd.DataFrame(
        {
            "run_id": [f"run-{i}" for i in range(rows)],
            **{name: [value] * rows for name, value in SHAPE.items()},
            "tokens": [1e6 * (1 + i) for i in range(rows)],
            "loss": [4.0 - 0.1 * i for i in range(rows)],
        }
    )
    return frame.assign(**columns)
