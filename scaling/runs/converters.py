"""Converters of published run tables from their authors' files to the columns of a run table.

Each file layout has one converter. A converter takes the files by name and returns one row per run
with ``loss`` in nats per token; further columns of the authors are kept. A table has the fields of
its shapes where they reproduce the published parameter count exactly (tests check this), else only
the counts. ``frame.attrs["left_out"]`` names the runs that a converter leaves out, with the reason.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import RATIOS
from shapelaw.scaling.runs.ratios import table_of

Files = Mapping[str, Path]
OUTLIERS = 5  # Chinchilla points with the highest losses (arXiv 2404.10102, section 3)
GEMSTONES_VOCABULARY = 50_304  # depth_width.py of the authors' repository
OPEN_LM_VOCABULARY = 50_432  # reproduces D = 20 N for all 130 shapes
OPEN_LM_SHAPES = {"open_lm_1b": (2048, 24, 16), "open_lm_7b": (4096, 32, 32)}
STEPLAW_CONTEXT = 2048  # tokens of a sequence: D = steps · batch · context
OLMO_VOCABULARY = 100_352  # rows of the embedding, padded (ladder.py of the authors' repository)
# Hidden size, intermediate size, layers, heads: ladder.py of the authors' repository.
OLMO_SHAPES = {
    "190M": (768, 3072, 12, 12),
    "370M": (1024, 4096, 16, 16),
    "760M": (1536, 6144, 16, 16),
    "1B": (2048, 8192, 16, 16),
    "3B": (3328, 13_312, 16, 16),
    "13B": (5120, 13_824, 40, 40),
}


def chinchilla_points(files: Files) -> pd.DataFrame:
    """Convert points of figure 4 of arXiv 2203.15556 as read by arXiv 2404.10102; D = C / 6N."""
    published = pd.read_csv(_single_file(files))
    size, compute = published["Model Size"], published["Training FLOP"]
    table = pd.DataFrame(
        {
            "run_id": [f"chinchilla-{row:03d}" for row in range(len(published))],
            "family": "chinchilla",
            "n_total": size,
            "tokens": compute / (6 * size),
            "flops_6nd": compute,
            "loss": published["loss"],
        }
    )
    table["outlier"] = table["loss"].rank(ascending=False, method="first") <= OUTLIERS
    return table


def chinchilla_subset(files: Files) -> pd.DataFrame:
    """Select the Chinchilla points that arXiv 2502.06857 keeps to show sparse sampling."""
    published = pd.read_json(_single_file(files), lines=True)
    return pd.DataFrame(
        {
            "run_id": [f"chinchilla-slim-{row:02d}" for row in range(len(published))],
            "family": "chinchilla",
            "n_total": published["params_active_precise"],
            "tokens": published["tokens"],
            "flops_6nd": published["FLOPs"],
            "loss": published["final_loss"],
        }
    )


def gemstones(files: Files, *, schedule: str, decayed: bool) -> pd.DataFrame:
    """Convert checkpoints of width × depth shapes (arXiv 2502.06857), Gemma-like, f = 4 d, untied.

    The head dimension is 128. A key-value head serves two query heads, but three at width 384.
    """
    published = pd.read_json(_single_file(files), lines=True)
    width, heads = published["width"], published["width"] // 128
    name = published["run_name"].str.replace("_pretrain", "").str.replace("PyGemma-", "")
    table = pd.DataFrame(
        {
            "run_id": name + "-step" + published["step"].astype(str),
            "family": "gemstones",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": published["depth"],
            "num_attention_heads": heads,
            "num_key_value_heads": np.maximum(heads // 2, 1),
            "head_dim": 128,
            "vocab_size": GEMSTONES_VOCABULARY,
            "tie_word_embeddings": False,
            "n_total": published["params_active_precise"],
            "tokens": published["tokens"],
            "loss": published["final_loss"],
            "corpus": "dolma",
            "context_length": 2048,
            "batch_tokens": published["tokens"] // published["step"],
            "schedule": schedule,
            "decayed": decayed,
            "run_group": name,
        }
    )
    return _with_shape(table).join(published[["step", "num_nodes", "seconds_per_step"]])


def mlfoundations_grid(files: Files) -> pd.DataFrame:
    """Convert all runs of the shape grid of arXiv 2403.08540, D = 20 N, at several warmups.

    Run names are
    ``d=WIDTH_l=LAYERS_h=HEADS-BATCH-RATE-DECAY-BATCH-TOKENS-WARMUP-FINAL RATE``;
    the two batch sizes agree in all runs. N = D / 20 in total parameters.
    """
    losses = json.loads(_single_file(files).read_text(encoding="utf-8"))
    pattern = r"d=(\d+)_l=(\d+)_h=(\d+)-(\d+)-([\d.]+)-([\d.]+)-\4-(\d+)-(\d+)-(.+)"
    values = np.array([re.fullmatch(pattern, name).groups() for name in losses])  # type: ignore[union-attr]
    width, layers, heads, batch, _, _, tokens, warmup = values[:, :8].astype(float).T.astype(int)
    table = pd.DataFrame(
        {
            "run_id": [f"{name.split('-')[0]}-warmup{steps}" for name, steps in
                       zip(losses, warmup, strict=True)],
            "family": "open_lm",
            **_open_lm(width, layers, heads),
            "tokens": tokens,
            "loss": list(losses.values()),
            "learning_rate": values[:, 4].astype(float),
            "weight_decay": values[:, 5].astype(float),
            "batch_sequences": batch,
            "schedule": [f"warmup {steps} steps, then decay to {rate}" for steps, rate in
                         zip(warmup, values[:, 8], strict=True)],
            "warmup_steps": warmup,
        }
    )  # fmt: skip
    return _with_shape(table)


def mlfoundations_tuned(files: Files) -> pd.DataFrame:
    """Select the run with the lowest loss over the warmups that were tried, for each shape.

    These losses are tuned: the lowest of 1 to 4 losses is below the loss of a typical run, and the
    gap grows with the number of runs (``warmups_tried``).
    """
    grid = mlfoundations_grid(files)
    shape = ["hidden_size", "num_hidden_layers", "num_attention_heads"]
    tried = grid.groupby(shape)["loss"].transform("size")
    best = grid["loss"] == grid.groupby(shape)["loss"].transform("min")
    tuned = grid.assign(warmups_tried=tried)[best].reset_index(drop=True)
    why = "another warmup gave this shape a lower loss"
    tuned.attrs["left_out"] = dict.fromkeys(grid["run_id"][~best], why)
    return tuned


def mlfoundations_overtrained(files: Files) -> pd.DataFrame:
    """Convert 104 models of six shapes, three corpora, D up to 32 × 20 N (arXiv 2403.08540).

    ``loss`` is the loss on held-out C4; ``loss_<text>`` is the loss on each of the eight texts. A
    fit takes runs of one corpus only.
    """
    published = pd.read_csv(_single_file(files))
    losses = published.pivot_table(index="name", columns="val", values="loss", sort=False)
    losses.columns = [f"loss_{_as_name(str(text))}" for text in losses.columns]
    models = published.drop_duplicates("name").set_index("name")
    dimensions = models["model"].str.extract(r"d=(\d+)_l=(\d+)_h=(\d+)").to_numpy(dtype=float)
    for row, model in enumerate(models["model"]):
        dimensions[row] = OPEN_LM_SHAPES.get(model, dimensions[row])
    table = pd.DataFrame(
        {
            "run_id": models.index,
            "family": "open_lm",
            **_open_lm(*dimensions.T.astype(int)),
            "tokens": models["D"].to_numpy(),
            "loss": losses["loss_c4_val"].to_numpy(),
            "validation": "c4_val",
            "corpus": models["dataset"].to_numpy(),
            "learning_rate": models["lr"].to_numpy(),
            "weight_decay": models["wd"].to_numpy(),
            "batch_sequences": models["global_bs"].to_numpy(),
            "warmup_steps": models["warmup"].to_numpy(),
        }
    )
    return _with_shape(table).join(losses.reset_index(drop=True))


def steplaw(files: Files) -> pd.DataFrame:
    """Convert grids of learning rate × batch size for five dense shapes (arXiv 2503.04715).

    ``loss`` is the smoothed training loss at the end of one epoch, which the authors fit;
    ``loss_last_step`` is the loss of the last step. N = attention + MLP parameters, without norms
    and embeddings. ``best_of_grid`` marks the lowest loss of each (shape, D).
    """
    published = pd.read_csv(_single_file(files))
    cell = [published[name] for name in ("N", "D")]
    table = pd.DataFrame(
        {
            "run_id": published["exp_name"],
            "family": "steplaw",
            "hidden_size": published["h"],
            "intermediate_size": published["ffnh"],
            "num_hidden_layers": published["numl"],
            "num_attention_heads": published["numh"],
            "num_key_value_heads": published["numh"],
            "head_dim": published["h"] // published["numh"],
            "n_non_embedding": published["N"],
            "tokens": published["D"],
            "loss": published["smooth loss"],
            "loss_last_step": published["loss"],
            "validation": "training text, smoothed",
            "context_length": STEPLAW_CONTEXT,
            "batch_tokens": published["bs"] * STEPLAW_CONTEXT,
            "learning_rate": published["lr"],
            "steps": published["ti"],
        }
    )
    lowest = published["smooth loss"].groupby(cell).transform("min")
    table["best_of_grid"] = published["smooth loss"] == lowest
    return _with_shape(table)


def olmo_ladder(files: Files) -> pd.DataFrame:
    """Convert the last checkpoint of every run: losses and task scores (arXiv 2412.04403).

    ``loss`` is the loss on held-out C4 (English), ``loss_<text>`` on each of the eleven texts.
    ``bpb_<task>`` is bits per byte of the correct answer, ``accuracy_<task>`` a fraction. A score
    that is missing for any run is left out. The authors' N (``n_published``) counts the head but
    not the embedding.
    """
    table = pd.DataFrame([_ladder_run(Path(name).stem, path) for name, path in files.items()])
    scores = table.filter(regex="^(loss|bpb|accuracy)_")
    return _with_shape(table.drop(columns=scores.columns)).join(scores.dropna(axis="columns"))


def _ladder_run(name: str, path: Path) -> dict[str, object]:
    """Convert the evaluations of a run to a row; ``path`` may have another name than ``name``."""
    last = pd.read_csv(path).iloc[-1]
    ladder = re.fullmatch(r"(\w+)-(\d+)xC", name)
    size = ladder[1] if ladder else "13B"
    hidden, intermediate, layers, heads = OLMO_SHAPES[size]
    tokens = last["_step"] * last["batch_size_in_tokens"]
    attention_and_mlp = 4 * hidden**2 + 3 * hidden * intermediate
    # RMSNorm after attention, after the MLP, and over all queries and all keys.
    body = layers * (attention_and_mlp + 4 * hidden) + hidden
    scores = {_score(str(name)): value for name, value in last.items() if _score(str(name))}
    return {
        "run_id": f"olmo-{name}" if ladder else "olmo-2-13B",
        "part": "ladder" if ladder else "target",
        "family": "olmo2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "vocab_size": OLMO_VOCABULARY,
        "tie_word_embeddings": False,
        "n_total": body + 2 * OLMO_VOCABULARY * hidden,
        "n_non_embedding": body,
        "n_published": body + OLMO_VOCABULARY * hidden,
        "tokens": int(last.get("throughput/total_tokens", tokens)),
        "chinchilla_multiple": int(ladder[2]) if ladder else np.nan,
        "loss": last["eval/c4_en-validation/CrossEntropyLoss"],
        "validation": "c4_en",
        "tokenizer": "allenai/dolma2-tokenizer",
        "context_length": 4096,
        "batch_tokens": int(last["batch_size_in_tokens"]),
        "learning_rate": last["learning_rate_peak"],
        "schedule": "cosine to a tenth" if ladder else "annealed",
        "decayed": True,
        **scores,
    }


def _score(column: str) -> str:
    """Return the column name for a published evaluation, empty where it is left out."""
    patterns = {
        r"eval/(.+)-validation/CrossEntropyLoss": "loss_",
        r"eval/downstream_bpb/(.+)_5shot_bpb": "bpb_",
        r"eval/downstream/(.+)_5shot_(?:len_norm|acc)": "accuracy_",
    }
    for pattern, prefix in patterns.items():
        if match := re.fullmatch(pattern, column):
            return prefix + _as_name(match[1])
    return ""


def _open_lm(width: np.ndarray, layers: np.ndarray, heads: np.ndarray) -> dict[str, object]:
    """Derive OpenLM's shapes: f = 8/3 d rounded up to a multiple of 256, without GQA."""
    return {
        "hidden_size": width,
        "intermediate_size": 256 * (-(-(8 * width // 3) // 256)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "vocab_size": OPEN_LM_VOCABULARY,
        "tie_word_embeddings": False,
    }


def _with_shape(table: pd.DataFrame) -> pd.DataFrame:
    """Add the counts and ratios that follow from the fields of a shape, and the aspect ratio."""
    shapes = table_of(table)
    counts = ("n_non_embedding", *(("n_total",) if "vocab_size" in table else ()))
    added = {name: getattr(shapes, name) for name in counts if name not in table}
    table = table.assign(**added)
    ratios = {name: getattr(shapes, name) for name in RATIOS}
    ratios["hidden_over_sqrt_n"] = table["hidden_size"] / np.sqrt(table["n_non_embedding"])
    return table.assign(**ratios, aspect_ratio=table["hidden_size"] / table["num_hidden_layers"])


def _single_file(files: Files) -> Path:
    """Return the path of the only file."""
    (path,) = files.values()
    return path


def _as_name(text: str) -> str:
    """Replace the characters of a text that a name in a filter cannot have."""
    return re.sub(r"\W", "_", text)


CONVERTERS: dict[str, Callable[[Files], pd.DataFrame]] = {
    "chinchilla": chinchilla_points,
    "gemstones": partial(gemstones, schedule="linear to 0 over 10 %", decayed=True),
    "gemstones-hot": partial(gemstones, schedule="constant", decayed=False),
    "gemstones-hot-long": partial(gemstones, schedule="constant", decayed=False),
    "gemstones-lr-ablation": partial(gemstones, schedule="constant", decayed=False),
    "gemstones-chinchilla": chinchilla_subset,
    "mlfoundations": mlfoundations_tuned,
    "mlfoundations-grid": mlfoundations_grid,
    "mlfoundations-overtrained": mlfoundations_overtrained,
    "steplaw": steplaw,
    "olmo-ladder": olmo_ladder,
    "olmo-ladder-3b": olmo_ladder,
}
