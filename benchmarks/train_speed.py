"""Training speed on a CPU core relative to Hugging Face's Llama in a plain training loop.

The promise is at least 1.3 times its tokens per second for the 8.4M-parameter model, and over the
shapes of a ladder a geometric mean of at least 1.2 with no ratio under 0.97, with bf16 autocast,
AdamW and one thread. Each implementation has a process of its own, as in use. The processes take
turns of a few steps, so that load of the machine affects all alike. A ratio is that of the median
CPU seconds of a step. litgpt is measured too where it is installed.

    python benchmarks/train_speed.py [--plan plan.csv] [--shapes 8] [--turns 12]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import importlib.util
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import torch
from record import finish
from torch import Tensor
from torch.nn import functional as F

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.execution import fastest_execution, keep_freed_memory

BENCHMARK = Shape(
    hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, vocab_size=4096, tie_word_embeddings=False,
)  # fmt: skip
LADDER = Path(__file__).parent.parent / "data" / "proxies" / "plan.csv"
STEPS_OF_A_RUN = 100_000  # engines are chosen for a long run
PEAK_SIZE = 2048
Step = Callable[[Tensor], None]


def our_step(shape: Shape, recipe: Recipe, cache: Path) -> Step:
    """Make a training step of shapelaw."""
    keep_freed_memory()
    engine = fastest_execution(shape, recipe, steps=STEPS_OF_A_RUN)
    model = Transformer(shape, context_length=recipe.context_length, attention=engine.attention)
    model.initialise(0)
    optimizer = Optimizer(model, recipe, STEPS_OF_A_RUN)
    objective, draws = objective_of(recipe), torch.Generator()
    compute_loss = engine.compile_loss(objective, model, cache)

    def step(batch: Tensor) -> None:
        loss, _ = compute_loss(model, Batch(batch), draws)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step(0)

    return step


def plain(model: torch.nn.Module, logits: Callable[[Tensor], Tensor], recipe: Recipe) -> Step:
    """Make a training step of a plain loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95))

    def step(batch: Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = logits(batch[:, :-1])
        loss = F.cross_entropy(output.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformers_step(shape: Shape, recipe: Recipe, cache: Path) -> Step:
    """Make a plain training step of the Llama of transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = shape.to_config(max_position_embeddings=recipe.context_length)
    config = AutoConfig.for_model(**values)
    model = AutoModelForCausalLM.from_config(config)
    return plain(model, lambda batch: model(batch, use_cache=False).logits, recipe)


def litgpt_step(shape: Shape, recipe: Recipe, cache: Path) -> Step:
    """Make a plain training step of litgpt."""
    from litgpt import GPT, Config

    config = Config(
        block_size=recipe.context_length,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.num_hidden_layers,
        n_embd=shape.hidden_size,
        n_head=shape.num_attention_heads,
        n_query_groups=shape.num_key_value_heads,
        head_size=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        norm_qk=shape.qk_norm,
    )
    model = GPT(config)
    if shape.tie_word_embeddings:
        model.lm_head.weight = model.transformer.wte.weight
    return plain(model, model, recipe)


STEPS = {"shapelaw": our_step, "transformers": transformers_step, "litgpt": litgpt_step}


def serve(name: str, shape: Shape, recipe: Recipe, cache: Path, calls: Connection) -> None:
    """Take the number of steps of each call, and answer with their CPU seconds."""
    torch.set_num_threads(1)
    step = STEPS[name](shape, recipe, cache)
    size = (recipe.sequences, recipe.context_length + 1)
    batch = torch.randint(shape.vocab_size, size, generator=torch.Generator().manual_seed(0))
    while count := calls.recv():
        seconds = []
        for _ in range(count):
            begun = time.process_time()
            step(batch)
            seconds.append(time.process_time() - begun)
        calls.send(seconds)


def compare(shape: Shape, recipe: Recipe, turns: int, cache: Path) -> dict[str, object]:
    """Measure the tokens per CPU second of each implementation in turns, and their ratios."""
    names = ["shapelaw", "transformers"]
    if importlib.util.find_spec("litgpt") and shape == BENCHMARK:
        names.append("litgpt")
    context = multiprocessing.get_context("spawn")
    calls, processes = {}, []
    for name in names:
        calls[name], theirs = context.Pipe()
        arguments = (name, shape, recipe, cache, theirs)
        processes.append(context.Process(target=serve, args=arguments, daemon=True))
        processes[-1].start()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for call in calls.values():  # compile and warm up
        call.send(3)
        last = call.recv()[-1]
    per_turn = max(2, round(0.3 / last))
    for _ in range(turns):
        for name, call in calls.items():
            call.send(per_turn)
            seconds[name] += call.recv()
    for call, process in zip(calls.values(), processes, strict=True):
        call.send(0)
        process.join()
    rates = {
        name: recipe.batch_tokens / statistics.median(times) for name, times in seconds.items()
    }
    return {
        "n_non_embedding": int(shape.n_non_embedding),
        "shape": str(shape),
        "engine": asdict(fastest_execution(shape, recipe, steps=STEPS_OF_A_RUN)),
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio": {
            name: round(rates["shapelaw"] / rate, 3)
            for name, rate in rates.items()
            if name != "shapelaw"
        },
        "steps_timed": len(seconds["shapelaw"]),
        "flops_per_token": float(shape.training_flops(recipe.context_length)),
    }


def matmul_peak() -> float:
    """Measure the FLOP/s of a large bf16 matrix product on one core, the best of ten."""
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(10):
        begun = time.process_time()
        a @ b
        times.append(time.process_time() - begun)
    return 2 * PEAK_SIZE**3 / min(times)


def shapes_of(plan: Path, count: int) -> list[Shape]:
    """Choose shapes spread evenly over a plan."""
    table = pd.read_csv(plan).drop_duplicates(list(INTEGER_FIELDS))
    rows = table.iloc[:: max(1, len(table) // count)].head(count).to_dict("records")
    return [Shape.from_config(row) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=LADDER)
    parser.add_argument("--shapes", type=int, default=8)
    parser.add_argument("--turns", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Recipe(context_length=256, sequences=16, optimizer="adamw", dtype="bfloat16")
    small = Recipe(context_length=256, sequences=4, optimizer="adamw", dtype="bfloat16")
    with tempfile.TemporaryDirectory() as cache:
        peak = matmul_peak()
        model = compare(BENCHMARK, bench, options.turns, Path(cache))
        rows = []
        for shape in shapes_of(options.plan, options.shapes):
            rows.append(compare(shape, small, options.turns, Path(cache)))
            print(rows[-1], flush=True)
    ratios = [row["ratio"]["transformers"] for row in rows]  # type: ignore[index]
    used = model["tokens_per_second"]["shapelaw"] * model["flops_per_token"]  # type: ignore[index]
    finish(
        "train_speed",
        {
            "benchmark_model": model,
            "peak_gflops": round(peak / 1e9, 1),
            "share_of_peak": round(used / peak, 3),
            "promise_ratio": 1.3,
            "ladder": rows,
            "ladder_geometric_mean": round(math.exp(statistics.fmean(map(math.log, ratios))), 3),
            "ladder_least": min(ratios),
            "promise_ladder": {"geometric_mean": 1.2, "least": 0.97},
            "torch": torch.__version__,
        },
    )


if __name__ == "__main__":
    main()
