"""Training of a whole plan on one GPU within a time limit, with several proxies at once.

The benchmark prints a JSON line for every event and, as the last line, one JSON document: checks of
correctness, speed and MFU of one model and of stacks, the packings that were measured, the rows of
the run table, and the runs that were not trained. The document is also written to `gpu_sweep.json`
in --out (or $OUT) after every pack. With --resume, or where the file exists already, its rows and
packings are not measured again. The benchmark needs torch and NumPy only.

    python benchmarks/gpu_sweep.py --plan plan.csv --text corpus.txt --limit-seconds 540
    python benchmarks/gpu_sweep.py --plan plan.csv --corpus sweep/corpus --dtype bfloat16
    python benchmarks/gpu_sweep.py --speed            # tokens/s and MFU of single models only
"""

import argparse
import csv
import importlib.util
import json
import os
import sys
import tempfile
import time
import tomllib
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))


def _no_safetensors() -> None:
    """Replace a missing safetensors, so that the sweep runs without checkpoints and exports."""

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "safetensors is not installed")

    module, part = types.ModuleType("safetensors"), types.ModuleType("safetensors.torch")
    module.SafetensorError = type("SafetensorError", (Exception,), {})  # type: ignore[attr-defined]
    module.safe_open = part.save_file = part.load_file = missing  # type: ignore[attr-defined]
    sys.modules |= {"safetensors": module, "safetensors.torch": part}


if importlib.util.find_spec("safetensors") is None:
    _no_safetensors()

import numpy as np
import torch

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.schema import conform
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.preparation import prepare
from shapelaw.trainers.gpu.autotune import Packing, choose_packing, packing_key, trial_stack
from shapelaw.trainers.gpu.packed_loop import PackEvents, train_pack
from shapelaw.trainers.gpu.packed_step import Feed, Options, PackedStep, packs
from shapelaw.trainers.gpu.resident_batches import resident
from shapelaw.trainers.gpu.stack import Stack
from shapelaw.trainers.objectives.chunked_loss import chunked_cross_entropy
from shapelaw.trainers.objectives.next_token import token_losses
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.device import device_label, device_named, synchronize
from shapelaw.trainers.training.spec import RunSpec

PROXY = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 256,
         "qk_norm": True}  # fmt: skip
SPEED = {
    "0.1M": Shape(hidden_size=64, intermediate_size=68, num_hidden_layers=4, **PROXY),
    "0.3M": Shape(hidden_size=96, intermediate_size=160, num_hidden_layers=4, **PROXY),
    "1M": Shape(hidden_size=160, intermediate_size=320, num_hidden_layers=5, **PROXY),
    "3M": Shape(hidden_size=224, intermediate_size=640, num_hidden_layers=6, **PROXY),
    "8.4M": Shape(hidden_size=256, intermediate_size=768, num_hidden_layers=8,
                  num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=4096,
        tie_word_embeddings=False),
}  # fmt: skip
TINY = Shape(hidden_size=32, intermediate_size=48, num_hidden_layers=2, **PROXY)
CHECK_STEPS = 20
DOCUMENT_NAME = "gpu_sweep.json"


class OutOfTime(Exception):
    """The time limit has passed."""


@dataclass
class Sweep:
    """Settings of a sweep, and its document, which grows with the results."""

    device: torch.device
    options: Options
    deadline: float
    out: Path
    document: dict[str, Any]

    def say(self, event: str, **about: object) -> None:
        """Print an event as a JSON line."""
        print(json.dumps({"event": event, **about}), flush=True)

    def keep(self) -> None:
        """Write the document to its file atomically."""
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = self.out / f".{DOCUMENT_NAME}"
        temporary.write_text(json.dumps(self.document))
        temporary.replace(self.out / DOCUMENT_NAME)

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return self.deadline - time.perf_counter()


def read_plan(path: Path, corpus: Corpus, recipe: Recipe) -> list[RunSpec]:
    """Read the runs of a plan.csv: fields of a shape, tokens, and any field of the recipe."""
    specs = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            values = {name: value for name, value in row.items() if value not in ("", None)}
            shape = Shape.from_config(values | {"vocab_size": corpus.vocab_size})
            settings = {
                field.name: type(getattr(recipe, field.name))(values[field.name])
                for field in fields(recipe)
                if field.name in values
            }
            branches = str(values.get("branches", "")).replace(",", " ").replace(";", " ").split()
            specs.append(
                RunSpec(
                    run_id=values.get("run_id", f"row-{number}"),
                    shape=shape,
                    tokens=round(float(values["tokens"])),
                    recipe=replace(recipe, **settings),
                    seed=int(values.get("seed", 0)),
                    data_seed=int(values.get("data_seed", 0)),
                    role=values.get("role", "proxy"),
                    branches=tuple(round(float(count)) for count in branches),
                )
            )
    return specs


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Return the device's peak FLOP/s for a dtype from data/hardware.toml, None if it lacks it."""
    path = Path(__file__).parent.parent / "data" / "hardware.toml"
    name = device_label(device).lower()
    for key, about in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if key in name:
            return about["peak_flops"].get(dtype)
    return None


def utilisation(spec: RunSpec, tokens_per_second: float, device: torch.device) -> float | None:
    """Compute model FLOPs utilisation (MFU), None where the peak is unknown."""
    peak = peak_flops(device, spec.recipe.dtype)
    per_token = spec.shape.training_flops(spec.recipe.context_length)
    return None if peak is None else tokens_per_second * per_token / peak


def _trained(specs: list[RunSpec], tokens: np.ndarray, device: torch.device, options: Options,
             notes: list[str]) -> list[float]:  # fmt: skip
    """Return the training losses of a stack after a few steps."""
    stack = Stack(specs, device)
    feed = Feed(stack, tokens, resident(tokens, device))
    step = PackedStep(stack, feed, options, note=notes.append)
    step.block(0, CHECK_STEPS, CHECK_STEPS)
    return step.losses.tolist()


def checks(sweep: Sweep, tokens: np.ndarray, recipe: Recipe) -> dict[str, object]:
    """Compare losses between devices, packing, compilation and chunked cross-entropy."""
    small = replace(recipe, context_length=64, sequences=4, dtype="float32", optimizer="adamw",
                    learning_rate=2e-3, matrix_learning_rate=2e-3)  # fmt: skip
    specs = [
        RunSpec(run_id=str(i), shape=TINY, tokens=CHECK_STEPS * small.batch_tokens,
                recipe=small, seed=i)
        for i in range(3)
    ]  # fmt: skip
    notes: list[str] = []
    plain = Options(capture=False)

    def run(count: int, device: torch.device, options: Options) -> float:
        return _trained(specs[:count], tokens, device, options, notes)[0]

    eager = run(1, sweep.device, plain)
    pairs = {
        "device_against_cpu": (eager, run(1, torch.device("cpu"), plain), 1e-3),
        "packed_against_single": (run(3, sweep.device, plain), eager, 1e-3),
        "captured_against_eager": (run(3, sweep.device, Options()), eager, 1e-3),
    }
    if sweep.options.compiler:
        compiled = run(3, sweep.device, Options(compiler=sweep.options.compiler))
        pairs["compiled_against_eager"] = (compiled, eager, 1e-3)
    pairs["chunked_against_plain"] = (*_chunked(sweep.device, tokens, specs[0]), 1e-5)
    return {
        name: {"got": got, "wanted": wanted, "ok": bool(abs(got - wanted) <= tolerance * wanted)}
        for name, (got, wanted, tolerance) in pairs.items()
    } | {"notes": notes}


def _chunked(device: torch.device, tokens: np.ndarray, spec: RunSpec) -> tuple[float, float]:
    """Return the norms of the head's gradient of the chunked and of the plain loss."""
    model = Stack([spec], device).models[0].to(device)
    batch = torch.from_numpy(np.array(tokens[: 4 * 65], dtype=np.int64)).view(4, 65).to(device)
    wanted = torch.autograd.grad(
        token_losses(model, batch, spec.recipe).mean(), model.embed_tokens.weight
    )[0].norm()
    hidden = model(batch[:, :-1])
    loss = chunked_cross_entropy(hidden, model.lm_head.weight, batch[:, 1:], chunk=50)
    got = torch.autograd.grad(loss, model.embed_tokens.weight)[0].norm()
    return got.item(), wanted.item()


def speeds(sweep: Sweep, recipe: Recipe, seconds: float) -> list[dict[str, object]]:
    """Measure tokens/s and MFU of one model and of stacks of 8 and 32, small to large."""
    rows: list[dict[str, object]] = []
    random = np.random.default_rng(0)
    for name, shape in SPEED.items():
        tokens = random.integers(0, shape.vocab_size, 1_000_000).astype(np.uint16)
        sequences = 64 if name == "8.4M" else recipe.sequences
        spec = RunSpec(run_id=name, shape=shape, tokens=10**9,
                       recipe=replace(recipe, sequences=sequences))  # fmt: skip
        for replicas in (1, 8, 32):
            if sweep.left < 30 + 4 * seconds:
                return rows
            trial = trial_stack(spec, tokens, replicas, device=sweep.device, seconds=seconds,
                                options=sweep.options)  # fmt: skip
            mfu = utilisation(spec, trial.tokens_per_second, sweep.device)
            rows.append({"model": name, "mfu": mfu, **asdict(trial)})
            sweep.say("speed", **rows[-1])
    return rows


def measure_packings(
    sweep: Sweep, specs: list[RunSpec], tokens: np.ndarray, seconds: float, most: tuple[int, int]
) -> Callable[[RunSpec], Packing]:
    """Measure packings of the smallest and the largest shape; others use the nearer in FLOPs."""
    packings = sweep.document["packings"]
    ordered = sorted(specs, key=lambda spec: spec.step_flops)
    ends = {packing_key(spec, sweep.device): spec for spec in (ordered[0], ordered[-1])}
    measured: list[tuple[float, Packing]] = []
    for key, spec in ends.items():
        if key not in packings:
            packing = choose_packing(spec, tokens, device=sweep.device, seconds=seconds,
                                     options=sweep.options, most=most)  # fmt: skip
            mfu = utilisation(spec, packing.tokens_per_second, sweep.device)
            packings[key] = {**asdict(packing), "mfu": mfu}
            sweep.say("packing", **packings[key])
            sweep.keep()
        values = {name: value for name, value in packings[key].items() if name != "mfu"}
        measured.append((spec.step_flops, conform(values, Packing)))

    def nearest(spec: RunSpec) -> Packing:
        distance = [abs(np.log(spec.step_flops / flops)) for flops, _ in measured]
        return measured[int(np.argmin(distance))][1]

    return nearest


def run_packs(sweep: Sweep, specs: list[RunSpec], corpus: Corpus,
              packing: Callable[[RunSpec], Packing], work: Path) -> None:  # fmt: skip
    """Train the packs, the most expensive first, until all are done or time is over."""
    done = {row["run_group"] for row in sweep.document["rows"]}
    waiting = sorted(
        (spec for spec in specs if spec.run_id not in done), key=lambda spec: -spec.flops
    )
    groups = [
        pack[start : start + packing(pack[0]).replicas]
        for pack in packs(waiting, len(waiting) or 1)
        for start in range(0, len(pack), packing(pack[0]).replicas)
    ]
    for pack in groups:
        needed = sum(spec.all_steps * spec.recipe.batch_tokens for spec in pack)
        predicted = needed / max(packing(pack[0]).tokens_per_second, 1e-9)
        if predicted > sweep.left:
            sweep.say("skipped", runs=[spec.run_id for spec in pack], predicted=predicted)
            continue
        try:
            _run_pack(sweep, pack, corpus, work)
        except OutOfTime:
            sweep.say("out of time", runs=[spec.run_id for spec in pack])
            break


def _run_pack(sweep: Sweep, pack: list[RunSpec], corpus: Corpus, work: Path) -> None:
    """Train a pack and add its rows to the document."""
    begun = time.perf_counter()
    notes: list[str] = []

    def watch(step: int) -> None:
        if sweep.left < 0:
            raise OutOfTime

    rows = train_pack(pack, corpus, lambda name: work / name, device=sweep.device,
                      options=sweep.options, checkpoint_seconds=float("inf"),
                      events=PackEvents(watch=watch, note=notes.append))  # fmt: skip
    seconds = time.perf_counter() - begun
    for spec, run_rows in zip(pack, rows, strict=True):
        for row in run_rows:
            per_second = row.get("tokens_per_second")
            mfu = None if per_second is None else utilisation(spec, per_second, sweep.device)
            sweep.document["rows"].append(row | {"mfu": mfu})
    sweep.say("pack", runs=[spec.run_id for spec in pack], seconds=seconds, notes=notes,
              losses=[run_rows[-1].get("loss") for run_rows in rows])  # fmt: skip
    sweep.keep()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--corpus", type=Path, help="folder of a prepared corpus")
    parser.add_argument("--text", type=Path, help="text file, read as bytes, instead of --corpus")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-sweep")))
    parser.add_argument("--resume", type=Path, help="document of an earlier call")
    parser.add_argument("--limit-seconds", type=float, default=540.0)
    parser.add_argument("--trial-seconds", type=float, default=2.0)
    parser.add_argument("--most-replicas", type=int, default=64)
    parser.add_argument("--most-processes", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--compiler", default=None, help="compiler, empty for none; default: inductor on a GPU"
    )
    parser.add_argument(
        "--recipe", type=json.loads, default={}, help="fields of the recipe, as JSON"
    )
    parser.add_argument("--speed", action="store_true", help="also measure single models")
    parser.add_argument("--no-checks", action="store_true")
    return parser.parse_args()


def _document(options: argparse.Namespace) -> dict[str, Any]:
    """Read the document of an earlier call, or make an empty one."""
    path = options.resume or options.out / DOCUMENT_NAME
    earlier = json.loads(path.read_text()) if path.exists() else {}
    return {
        "benchmark": "gpu_sweep",
        "rows": [],
        "packings": {},
        "checks": {},
        "speed": [],
    } | earlier


def main() -> None:
    begun = time.perf_counter()
    options = arguments()
    device = device_named(options.device)
    compiler = (
        ("inductor" if device.type == "cuda" else "")
        if options.compiler is None
        else options.compiler
    )
    sweep = Sweep(device, Options(compiler=compiler, export=False), begun + options.limit_seconds,
                  options.out, _document(options))  # fmt: skip
    about = {"device": device_label(device), "torch": torch.__version__, "compiler": compiler,
             "command": " ".join(["python", *sys.argv])}  # fmt: skip
    sweep.document |= about
    sweep.say("begin", **about)
    recipe = replace(Recipe(dtype=options.dtype), **options.recipe)
    with tempfile.TemporaryDirectory() as folder:
        _sweep(sweep, options, recipe, Path(folder))
    synchronize(device)
    sweep.document["seconds"] = sweep.document.get("seconds", 0.0) + time.perf_counter() - begun
    sweep.keep()
    print(json.dumps(sweep.document), flush=True)


def _sweep(sweep: Sweep, options: argparse.Namespace, recipe: Recipe, work: Path) -> None:
    """Measure speeds, run the checks and train the plan, as the options say."""
    if options.speed and not sweep.document["speed"]:
        sweep.document["speed"] = speeds(sweep, recipe, options.trial_seconds)
        sweep.keep()
    if options.plan is None:
        return
    corpus = (
        Corpus.load(options.corpus)
        if options.corpus
        else prepare(str(options.text), work / "corpus")
    )
    specs = read_plan(options.plan, corpus, recipe)
    tokens = corpus.train()
    if not options.no_checks and not sweep.document["checks"]:
        sweep.document["checks"] = checks(sweep, tokens, recipe)
        sweep.say("checks", **sweep.document["checks"])
    most = (options.most_replicas, options.most_processes)
    packing = measure_packings(sweep, specs, tokens, options.trial_seconds, most)
    run_packs(sweep, specs, corpus, packing, work)
    done = {row["run_group"] for row in sweep.document["rows"]}
    sweep.document["undone"] = [spec.run_id for spec in specs if spec.run_id not in done]


if __name__ == "__main__":
    main()
