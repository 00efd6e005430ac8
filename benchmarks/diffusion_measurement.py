"""Quality against decoding speed of autoregressive, masked, block and D2F models of one shape.

Trains one shape of 0.3M parameters by each paradigm, and appends a row to a file of JSON lines for
each finished part: held-out bits per byte (a bound for diffusion) and BLiMP, each with its standard
error, then the decoding speed of each decoder at each confidence and batch size. D2F begins with
the model of masked diffusion and trains adapters on a tenth of its tokens.

    python benchmarks/diffusion_measurement.py --corpus TEXT --evals EVALS --work FOLDER \
        [--tokens 24M] [--pairs 50] [--seed 0] [--rows data/diffusion/measurement.jsonl]

The same command goes on where it was stopped: training from its last checkpoint, other parts from
the last row. Speeds are those of one thread, in CPU seconds of the fastest repeat, which other load
changes least. ``shapelaw report --renew`` draws ``docs/diffusion/``.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.files import data_folder, write_json
from shapelaw.scaling.units import parse_count
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.encoding import load_encoding
from shapelaw.trainers.corpus.options import CorpusOptions
from shapelaw.trainers.evaluation.blimp import blimp_accuracy
from shapelaw.trainers.evaluation.bounds import trained_objective
from shapelaw.trainers.evaluation.eval_sets import read_evals
from shapelaw.trainers.generation.decoding_settings import parse_decoder
from shapelaw.trainers.generation.diffusion import decode
from shapelaw.trainers.models.hugging_face import load_export
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.sweep.convert import ConversionRequest, convert_run
from shapelaw.trainers.sweep.train_one import train_config

SHAPE = Shape(
    hidden_size=96, intermediate_size=160, num_hidden_layers=5, num_attention_heads=3,
    num_key_value_heads=1, head_dim=32, vocab_size=256, qk_norm=True, tie_word_embeddings=True,
)  # fmt: skip
RECIPE = (
    *("context_length=256", "sequences=4", "dtype=bfloat16", "warmup_steps=50"),
    *("matrix_learning_rate=0.02", "learning_rate=0.006"),
)
OBJECTIVES = {"ar": "next_token", "masked": "masked_diffusion", "block": "block:16"}
D2F_PARENT, D2F_SHARE = "masked", 0.1  # of the tokens of its parent
BLOCK, CONFIDENCES, BATCHES = 16, (0.3, 0.5, 0.7, 0.9), (1, 8)
DECODERS = {
    "ar": ("ar",),
    "masked": (f"llada:block={BLOCK}", f"llada:block={BLOCK},steps=4",
               f"threshold:block={BLOCK},confidence={{}}"),
    "block": (f"block:block={BLOCK},confidence={{}}",),
    "d2f": (f"block:block={BLOCK},confidence={{}}", f"d2f:block={BLOCK},confidence={{}}"),
}  # fmt: skip
MIN_TEXT = 1_000_000  # tokens of training text at least, so that the held-out text has documents
PROMPT, LENGTH, PROMPTS, REPEATS = 64, 128, 8, 2

Row = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Settings of a measurement, and the file of its rows.

    Parameters
    ----------
    corpus, evals, work
        Text to train on, evaluation sets with BLiMP, and folder of the training runs.
    tokens
        Training tokens of each paradigm.
    pairs
        Pairs of each paradigm of BLiMP.
    seed
        Seed of the initial weights.
    rows
        File of JSON lines.
    """

    corpus: str
    evals: Path
    work: Path
    tokens: str
    pairs: int
    seed: int
    rows: Path

    @property
    def count(self) -> int:
        """Training tokens as a number."""
        return parse_count(self.tokens)

    def key(self, paradigm: str, part: str, **more: object) -> Row:
        """Return the columns by which a finished part is known."""
        return {"tokens": self.count, "seed": self.seed, "paradigm": paradigm, "part": part, **more}

    def done(self, key: Row) -> Row | None:
        """Return the row of a part if it is in the file."""
        for row in read_rows(self.rows):
            if all(row.get(name) == value for name, value in key.items()):
                return row
        return None

    def add(self, row: Row) -> None:
        """Append a row to the file, whole."""
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        with self.rows.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def train(self, paradigm: str) -> Row:
        """Train the model of a paradigm, or go on with it, and return its row of the run table."""
        config = self.work / "config.json"
        config.parent.mkdir(parents=True, exist_ok=True)
        write_json(config, SHAPE.to_config(max_position_embeddings=256))
        if paradigm in OBJECTIVES:
            settings = (*RECIPE, f"objective={OBJECTIVES[paradigm]}")
            text = CorpusOptions(corpus=self.corpus, tokens=max(self.count, MIN_TEXT))
            return train_config(config, self.tokens, text, self.work, settings, seed=self.seed)
        parent = self.work / "runs" / str(self.train(D2F_PARENT)["run_id"])
        tokens = str(max(round(D2F_SHARE * self.count), 1024))
        return convert_run(parent, ConversionRequest(to=f"d2f:{BLOCK}", tokens=tokens))

    def run_of(self, paradigm: str) -> str:
        """Return the id of the run of a paradigm; train it first, and write its row."""
        key = self.key(paradigm, "loss")
        row = self.done(key)
        if row is None:
            trained = self.train(paradigm)
            nats = float(str(trained["loss_se"])) / float(str(trained["loss"]))
            bits = float(str(trained["bits_per_byte"]))
            names = ("run_id", "n_non_embedding", "corpus", "objective", "loss_kind",
                     "flops_counted", "seconds", "parent_tokens")  # fmt: skip
            row = key | {"bits_per_byte": bits, "bits_per_byte_se": nats * bits}
            row |= {"trained_tokens": trained["tokens"]}
            row |= {name: trained[name] for name in names if trained.get(name) is not None}
            self.add(row)
        return str(row["run_id"])

    def score(self, paradigm: str) -> None:
        """Score the model of a paradigm on BLiMP, and write its row."""
        key = self.key(paradigm, "blimp", pairs=self.pairs)
        if self.done(key):
            return
        run = self.work / "runs" / self.run_of(paradigm)
        model, encoding = load_export(run, attention="matmul"), load_encoding(run)
        objective = trained_objective(run, model)
        score = blimp_accuracy(model, encoding, read_evals(self.evals), limit=self.pairs,
                               objective=objective)  # fmt: skip
        names = ("loss_kind", "draws", "mean_difference", "mean_difference_masks_se",
                 "unresolved_pairs")  # fmt: skip
        details = {name: score.details[name] for name in names if name in score.details}
        self.add(
            key
            | {"accuracy": score.accuracy, "accuracy_se": score.standard_error}
            | {"items": score.items, **details}
        )

    def decode(self, paradigm: str) -> None:
        """Time the decoders of a paradigm, and write a row for each and each batch size."""
        keys = [self.key(paradigm, "decoding", decoder=text, batch=batch)
                for text in decoders_of(paradigm) for batch in BATCHES]  # fmt: skip
        if all(map(self.done, keys)):
            return
        model = load_export(self.work / "runs" / self.run_of(paradigm)).eval()
        prompts = prompts_of(Corpus.load(self.work / "corpus"))
        for key in keys:
            if not self.done(key):
                batch = int(str(key["batch"]))
                self.add(key | time_decoder(model, str(key["decoder"]), prompts, batch))


def read_rows(path: Path) -> Iterator[Row]:
    """Return the rows of a file of JSON lines, without a last line that was cut off."""
    if not path.exists():
        return
    text = path.read_text()
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    yield from map(json.loads, path.read_text().splitlines())


def decoders_of(paradigm: str) -> list[str]:
    """Return the settings of the decoders of a paradigm, over the confidences."""
    texts = []
    for text in DECODERS[paradigm]:
        texts += [text.format(each) for each in CONFIDENCES] if "{}" in text else [text]
    return texts


def prompts_of(corpus: Corpus) -> torch.Tensor:
    """Cut prompts, (8, 64), from equally spaced places of the held-out text."""
    tokens = corpus.validation_shard().tokens
    places = [index * (len(tokens) - PROMPT) // PROMPTS for index in range(PROMPTS)]
    return torch.tensor([tokens[place : place + PROMPT].tolist() for place in places])


def time_decoder(model: Transformer, text: str, prompts: torch.Tensor, batch: int) -> Row:
    """Decode prompts in batches and return tokens per pass and per second, and seconds per answer.

    A batch of one decodes the first two prompts.
    """
    settings = parse_decoder(text)
    parts = prompts[: 2 if batch == 1 else PROMPTS].split(batch)
    best = float("inf")
    for _ in range(REPEATS):
        begun = time.process_time()
        decoded = [decode(model, part, settings, length=LENGTH) for part in parts]
        best = min(best, time.process_time() - begun)
    useful = sum(sum(each.useful) for each in decoded)
    passes = sum(each.forwards * len(each.useful) for each in decoded)
    return {
        "tokens_per_forward": useful / passes,
        "tokens_per_second": useful / best,
        "seconds_per_answer": best / len(parts),
        "device": f"1 thread, torch {torch.__version__}",
    }


def main() -> None:
    """Train, score and time every paradigm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--evals", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", default="24M")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    default = data_folder() / "diffusion" / "measurement.jsonl"
    parser.add_argument("--rows", type=Path, default=default)
    measurement = Measurement(**vars(parser.parse_args()))
    torch.set_num_threads(1)
    for paradigm in DECODERS:
        measurement.run_of(paradigm)
    for paradigm in DECODERS:
        measurement.decode(paradigm)
    for paradigm in DECODERS:
        measurement.score(paradigm)


if __name__ == "__main__":
    main()
