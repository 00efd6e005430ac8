"""Promise: a whole plan trains on one GPU inside a time limit, several proxies at once.

Prints a JSON line for everything that happens and, as the last line, one JSON document: checks of
correctness, speed and share of the peak of one model and of stacks, the packings that were
measured, the rows of the run table, and what was left undone. The document is also kept as
`gpu_sweep.json` in --out (or $OUT), rewritten after every pack; with --resume, or where it lies
there already, rows and packings that it has are not made again. Needs torch and NumPy only.

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
    """Where safetensors is missing nothing is checkpointed or exported, and the sweep goes on."""

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
    ".1M": Shape(hidden_size=64, intermediate_size=68, num_hidden_layers=4, **PROXY),
    ".3M": Shape(hidden_size=96, intermediate_size=160, num_hidden_layers=4, **PROXY),
    "1M": Shape(hidden_size=160, intermediate_size=320, num_hidden_layers=5, **PROXY),
    "3M": Shape(hidden_size=224, intermediate_size=640, num_hidden_layers=6, **PROXY),
    "8.4M": Shape(hidden_size=256, intermediate_size=768, num_hidden_layers=8,
                  num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=4096,
        tie_word_embeddings=False),
}  # fmt: skip
TINY = Shape(hidden_size=32, intermediate_size=48, num_hidden_layers=2, **PROXY)
CHECK_STEPS = 20
KEPT = "gpu_sweep.json"


class OutOfTime(Exception):
    """The time limit is near."""


@dataclass
class Sweep:
    """What is asked for, and the document that grows."""

    device: torch.device
    options: Options
    deadline: float
    out: Path
    document: dict[str, Any]

    def say(self, event: str, **about: object) -> None:
        print(json.dumps({"event": event, **about}), flush=True)

    def keep(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = self.out / f".{KEPT}"
        temporary.write_text(json.dumps(self.document))
        temporary.replace(self.out / KEPT)

    @property
    def left(self) -> float:
        return self.deadline - time.perf_counter()


def read_plan(path: Path, corpus: Corpus, recipe: Recipe) -> list[RunSpec]:
    """The runs of a plan.csv: fields of a shape, tokens, and any field of the recipe."""
    specs = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            given = {name: value for name, value in row.items() if value not in ("", None)}
            shape = Shape.from_config(given | {"vocab_size": corpus.vocab_size})
            settings = {
                field.name: type(getattr(recipe, field.name))(given[field.name])
                for field in fields(recipe)
                if field.name in given
            }
            branches = str(given.get("branches", "")).replace(",", " ").replace(";", " ").split()
            specs.append(
                RunSpec(
                    run_id=given.get("run_id", f"row-{number}"),
                    shape=shape,
                    tokens=round(float(given["tokens"])),
                    recipe=replace(recipe, **settings),
                    seed=int(given.get("seed", 0)),
                    data_seed=int(given.get("data_seed", 0)),
                    role=given.get("role", "proxy"),
                    branches=tuple(round(float(count)) for count in branches),
                )
            )
    return specs


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """The device's published peak for a dtype from data/hardware.toml, None if it is not there."""
    path = Path(__file__).parent.parent / "data" / "hardware.toml"
    name = device_label(device).lower()
    for key, about in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if key in name:
            return about["peak_flops"].get(dtype)
    return None


def utilisation(spec: RunSpec, tokens_per_second: float, device: torch.device) -> float | None:
    """Model FLOPs per second over the peak (MFU); None where the peak is not known."""
    peak = peak_flops(device, spec.recipe.dtype)
    per_token = spec.shape.training_flops(spec.recipe.context_length)
    return None if peak is None else tokens_per_second * per_token / peak


def _trained(specs: list[RunSpec], tokens: np.ndarray, device: torch.device, options: Options,
             notes: list[str]) -> list[float]:  # fmt: skip
    """Training losses of a stack after a few steps."""
    stack = Stack(specs, device)
    feed = Feed(stack, tokens, resident(tokens, device))
    step = PackedStep(stack, feed, options, note=notes.append)
    step.block(0, CHECK_STEPS, CHECK_STEPS)
    return step.losses.tolist()


def checks(sweep: Sweep, tokens: np.ndarray, recipe: Recipe) -> dict[str, object]:
    """Pairs of losses that must agree: devices, packing, compilation, chunked cross-entropy."""
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
    found = {
        "device_against_cpu": (eager, run(1, torch.device("cpu"), plain), 1e-3),
        "packed_against_single": (run(3, sweep.device, plain), eager, 1e-3),
        "captured_against_eager": (run(3, sweep.device, Options()), eager, 1e-3),
    }
    if sweep.options.compiler:
        compiled = run(3, sweep.device, Options(compiler=sweep.options.compiler))
        found["compiled_against_eager"] = (compiled, eager, 1e-3)
    found["chunked_against_plain"] = (*_chunked(sweep.device, tokens, specs[0]), 1e-5)
    return {
        name: {"got": got, "wanted": wanted, "ok": bool(abs(got - wanted) <= tolerance * wanted)}
        for name, (got, wanted, tolerance) in found.items()
    } | {"notes": notes}


def _chunked(device: torch.device, tokens: np.ndarray, spec: RunSpec) -> tuple[float, float]:
    """Norm of the head's gradient by the chunked loss and by the plain one."""
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
    """Tokens/s and MFU of one model and of stacks of 8 and 32, small to large."""
    found: list[dict[str, object]] = []
    random = np.random.default_rng(0)
    for name, shape in SPEED.items():
        tokens = random.integers(0, shape.vocab_size, 1_000_000).astype(np.uint16)
        sequences = 64 if name == "8.4M" else recipe.sequences
        spec = RunSpec(run_id=name, shape=shape, tokens=10**9,
                       recipe=replace(recipe, sequences=sequences))  # fmt: skip
        for replicas in (1, 8, 32):
            if sweep.left < 30 + 4 * seconds:
                return found
            trial = trial_stack(spec, tokens, replicas, device=sweep.device, seconds=seconds,
                                options=sweep.options)  # fmt: skip
            mfu = utilisation(spec, trial.tokens_per_second, sweep.device)
            found.append({"model": name, "mfu": mfu, **asdict(trial)})
            sweep.say("speed", **found[-1])
    return found


def measure_packings(
    sweep: Sweep, specs: list[RunSpec], tokens: np.ndarray, seconds: float, most: tuple[int, int]
) -> Callable[[RunSpec], Packing]:
    """Measure the smallest and the largest shape; every other takes that of the nearer in FLOPs."""
    kept = sweep.document["packings"]
    ordered = sorted(specs, key=lambda spec: spec.step_flops)
    ends = {packing_key(spec, sweep.device): spec for spec in (ordered[0], ordered[-1])}
    known: list[tuple[float, Packing]] = []
    for key, spec in ends.items():
        if key not in kept:
            packing = choose_packing(spec, tokens, device=sweep.device, seconds=seconds,
                                     options=sweep.options, most=most)  # fmt: skip
            mfu = utilisation(spec, packing.tokens_per_second, sweep.device)
            kept[key] = {**asdict(packing), "mfu": mfu}
            sweep.say("packing", **kept[key])
            sweep.keep()
        values = {name: value for name, value in kept[key].items() if name != "mfu"}
        known.append((spec.step_flops, Packing.from_json(values)))

    def nearest(spec: RunSpec) -> Packing:
        distance = [abs(np.log(spec.step_flops / flops)) for flops, _ in known]
        return known[int(np.argmin(distance))][1]

    return nearest


def run_packs(sweep: Sweep, specs: list[RunSpec], corpus: Corpus,
              packing: Callable[[RunSpec], Packing], work: Path) -> None:  # fmt: skip
    """Train pack after pack, the dearest first, until all are done or the time is."""
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
    begun = time.perf_counter()
    notes: list[str] = []

    def watch(step: int) -> None:
        if sweep.left < 0:
            raise OutOfTime

    rows = train_pack(pack, corpus, lambda name: work / name, device=sweep.device,
                      options=sweep.options, checkpoint_seconds=float("inf"),
                      events=PackEvents(watch=watch, note=notes.append))  # fmt: skip
    seconds = time.perf_counter() - begun
    for spec, own in zip(pack, rows, strict=True):
        for row in own:
            per_second = row.get("tokens_per_second")
            mfu = None if per_second is None else utilisation(spec, per_second, sweep.device)
            sweep.document["rows"].append(row | {"mfu": mfu})
    sweep.say("pack", runs=[spec.run_id for spec in pack], seconds=seconds, notes=notes,
              losses=[own[-1].get("loss") for own in rows])  # fmt: skip
    sweep.keep()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--corpus", type=Path, help="folder of a prepared corpus")
    parser.add_argument("--text", type=Path, help="a text file, as bytes, instead of --corpus")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-sweep")))
    parser.add_argument("--resume", type=Path, help="the document of an earlier call")
    parser.add_argument("--limit-seconds", type=float, default=540.0)
    parser.add_argument("--trial-seconds", type=float, default=2.0)
    parser.add_argument("--most-replicas", type=int, default=64)
    parser.add_argument("--most-processes", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compiler", default=None, help="inductor on a GPU; empty for none")
    parser.add_argument("--recipe", type=json.loads, default={}, help="JSON of recipe fields")
    parser.add_argument("--speed", action="store_true", help="measure single models too")
    parser.add_argument("--no-checks", action="store_true")
    return parser.parse_args()


def _document(given: argparse.Namespace) -> dict[str, Any]:
    """The document of an earlier call, or an empty one."""
    path = given.resume or given.out / KEPT
    known = json.loads(path.read_text()) if path.exists() else {}
    return {"benchmark": "gpu_sweep", "rows": [], "packings": {}, "checks": {}, "speed": []} | known


def main() -> None:
    begun = time.perf_counter()
    given = arguments()
    device = device_named(given.device)
    compiler = (
        ("inductor" if device.type == "cuda" else "") if given.compiler is None else given.compiler
    )
    sweep = Sweep(device, Options(compiler=compiler, export=False), begun + given.limit_seconds,
                  given.out, _document(given))  # fmt: skip
    about = {"device": device_label(device), "torch": torch.__version__, "compiler": compiler,
             "command": " ".join(["python", *sys.argv])}  # fmt: skip
    sweep.document |= about
    sweep.say("begin", **about)
    recipe = replace(Recipe(dtype=given.dtype), **given.recipe)
    with tempfile.TemporaryDirectory() as folder:
        _sweep(sweep, given, recipe, Path(folder))
    synchronize(device)
    sweep.document["seconds"] = sweep.document.get("seconds", 0.0) + time.perf_counter() - begun
    sweep.keep()
    print(json.dumps(sweep.document), flush=True)


def _sweep(sweep: Sweep, given: argparse.Namespace, recipe: Recipe, work: Path) -> None:
    if given.speed and not sweep.document["speed"]:
        sweep.document["speed"] = speeds(sweep, recipe, given.trial_seconds)
        sweep.keep()
    if given.plan is None:
        return
    corpus = (
        Corpus.load(given.corpus) if given.corpus else prepare(str(given.text), work / "corpus")
    )
    specs = read_plan(given.plan, corpus, recipe)
    tokens = corpus.train()
    if not given.no_checks and not sweep.document["checks"]:
        sweep.document["checks"] = checks(sweep, tokens, recipe)
        sweep.say("checks", **sweep.document["checks"])
    most = (given.most_replicas, given.most_processes)
    packing = measure_packings(sweep, specs, tokens, given.trial_seconds, most)
    run_packs(sweep, specs, corpus, packing, work)
    done = {row["run_group"] for row in sweep.document["rows"]}
    sweep.document["undone"] = [spec.run_id for spec in specs if spec.run_id not in done]


if __name__ == "__main__":
    main()
