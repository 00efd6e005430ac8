"""Decode speed of the embedded engine; promise: at least 1.3 times that of transformers.

The benchmark compares the engine with transformers and a static cache, for a model of 93.6M
parameters at batch 1 and 8 in fp32 and bf16, on one thread, and with the memory's read bandwidth.
A dynamic cache and llama.cpp are measured too where they are installed. Every implementation has a
process of its own, and the processes take turns, so that load of the machine affects all alike. A
turn is one run of the whole workload; its figure is the CPU seconds of the decode per token. The
interval is Student's, of the logarithms of paired turns.

    python benchmarks/decode_speed.py [--turns 6] [--dtypes float32,bfloat16] [--batches 1,8]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np
from record import finish
from scipy.stats import t as student

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.search.workload import Workload

MODEL = Shape(
    hidden_size=512, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64, vocab_size=32_000, tie_word_embeddings=False,
)  # fmt: skip
OURS, THEIRS = "torch", "transformers"
ENGINES = (OURS, THEIRS, "transformers:dynamic", "llamacpp")
READ = "read bandwidth"
SHORT_OUTPUT = 2  # tokens of the run that times prefill, where an engine does not separate it


def serve(name: str, shape: Shape, workload: Workload, calls: Connection) -> None:
    """Answer every call with the CPU seconds of all decode steps and of the prefill."""
    from shapelaw.search.engines._timed import TimedEngine
    from shapelaw.search.engines.machine import read_bandwidth
    from shapelaw.search.engines.registry import engine_named

    if name == READ:
        while calls.recv():
            calls.send((read_bandwidth(turns=2), 0.0))
        return
    begun = time.process_time()
    try:
        engine = engine_named(name)
        assert isinstance(engine, TimedEngine)
        server = engine.start(shape, workload)
        server.serve(4)
    except (InputError, WorkError) as error:
        calls.send(str(error))
        return
    calls.send(time.process_time() - begun)
    while calls.recv():
        whole = server.serve(workload.output_tokens)
        if whole.decode_cpu is None:
            prefill = server.serve(SHORT_OUTPUT).cpu * 1.0
            steps = workload.output_tokens - SHORT_OUTPUT
            decode = (whole.cpu - prefill) / steps * (workload.output_tokens - 1)
        else:
            decode = whole.decode_cpu
        calls.send((decode, whole.cpu - decode))


def compare(shape: Shape, workload: Workload, turns: int) -> dict[str, object]:
    """Measure the CPU seconds of every implementation in turns, and derive the figures."""
    context = multiprocessing.get_context("spawn")
    calls, started, missing = {}, {}, {}
    for name in (*ENGINES, READ):
        calls[name], theirs = context.Pipe()
        arguments = (name, shape, workload, theirs)
        context.Process(target=serve, args=arguments, daemon=True).start()
        if name == READ:
            continue
        answer = calls[name].recv()
        if isinstance(answer, str):
            missing[name] = answer
            del calls[name]
        else:
            started[name] = round(answer, 2)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            call.send(True)
            seconds[name].append(call.recv())
    for call in calls.values():
        call.send(False)
    bandwidth = max(value for value, _ in seconds.pop(READ))
    return figures(shape, workload, seconds, bandwidth) | {
        "start_cpu_seconds": started,
        "not_measured": missing,
    }


def figures(
    shape: Shape,
    workload: Workload,
    seconds: dict[str, list[tuple[float, float]]],
    bandwidth: float,
) -> dict[str, object]:
    """Compute tokens per CPU second, ratios to our engine, and the share of the bandwidth."""
    tokens = workload.concurrency * (workload.output_tokens - 1)
    decode = {name: np.array([turn[0] for turn in turns]) for name, turns in seconds.items()}
    prefill = {name: np.array([turn[1] for turn in turns]) for name, turns in seconds.items()}
    size = workload.bytes_per_value
    embedding = shape.vocab_size * shape.hidden_size  # a step reads single rows of it
    weights = size * (shape.n_total - embedding * (not shape.tie_word_embeddings))
    context = workload.input_tokens + workload.output_tokens / 2
    step_bytes = weights + workload.concurrency * context * shape.kv_bytes(size)
    step = np.median(decode[OURS]) / (workload.output_tokens - 1)
    return {
        "workload": str(workload),
        "decode_tokens_per_cpu_second": {
            name: round(tokens / float(np.median(value)), 1) for name, value in decode.items()
        },
        "prefill_tokens_per_cpu_second": {
            name: round(workload.concurrency * workload.input_tokens / float(np.median(value)))
            for name, value in prefill.items()
        },
        "decode_ratio_of_ours": {
            name: _ratio(value, decode[OURS]) for name, value in decode.items() if name != OURS
        },
        "prefill_ratio_of_ours": {
            name: _ratio(value, prefill[OURS]) for name, value in prefill.items() if name != OURS
        },
        "read_gigabytes_per_second": round(bandwidth / 1e9, 2),
        "share_of_read_bandwidth": round(float(step_bytes / step / bandwidth), 3),
        "turns": len(decode[OURS]),
    }


def _ratio(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Compute the geometric mean of the ratios of paired turns, with a 95 % interval."""
    logs = np.log(theirs / ours)
    half = 0.0
    if len(logs) > 1:
        half = student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    values = {"ratio": logs.mean(), "low": logs.mean() - half, "high": logs.mean() + half}
    return {name: round(float(np.exp(value)), 3) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--lengths", default="256/64")
    options = parser.parse_args()
    inputs, outputs = map(int, options.lengths.split("/"))
    rows = []
    before = os.getloadavg()[0]
    for dtype in options.dtypes.split(","):
        for batch in map(int, options.batches.split(",")):
            workload = Workload(
                name="decode", input_tokens=inputs, output_tokens=outputs, concurrency=batch,
                dtype=dtype,
            )  # fmt: skip
            rows.append(compare(MODEL, workload, options.turns))
            print(rows[-1], flush=True)
    least = min(row["decode_ratio_of_ours"][THEIRS]["ratio"] for row in rows)  # type: ignore[index]
    finish(
        "decode_speed",
        {
            "model": str(MODEL),
            "parameters": int(MODEL.n_total),
            "promise": f"at least 1.3 times {THEIRS} with a static cache",
            "least_ratio": least,
            "rows": rows,
            "load_before_and_after": [round(before, 1), round(os.getloadavg()[0], 1)],
        },
    )


if __name__ == "__main__":
    main()
