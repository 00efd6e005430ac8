"""Decode a trained diffusion model by blocks with and without the pipeline, on one CPU core.

``python benchmarks/diffusion_decode.py RUN TEXT --block 16 --length 128`` takes the exported folder
of a run, and prompts from a text; it prints tokens per forward pass, tokens per second and seconds
per answer of each decoder, and the speed of each over that of blocks without the pipeline at the
same confidence. ``--profile`` prints where the pipelined decoder spends its time. Decoders take
turns, and times are CPU seconds of the fastest repeat, which other load changes least.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import torch

from shapelaw.trainers.generation.decoding_settings import Decoded, parse_decoder
from shapelaw.trainers.generation.diffusion import decode
from shapelaw.trainers.models.hugging_face import load_export
from shapelaw.trainers.models.transformer import Transformer


def prompts_of(text: Path, count: int, length: int) -> list[torch.Tensor]:
    """Cut prompts of bytes, (1, P) each, from equally spaced places of a text."""
    content = text.read_bytes()
    places = [index * (len(content) - length) // count for index in range(count)]
    return [torch.tensor([list(content[place : place + length])]) for place in places]


def decoders_of(block: int, confidences: list[float]) -> dict[str, str]:
    """Return the settings of every decoder, and of blocks at the same confidence as the base."""
    pairs = {}
    for confidence in confidences:
        base = f"block:block={block},confidence={confidence:g}"
        pairs[base] = base
        for activate, add in ((0.95, 0.1), (0.95, 0.5), (0.5, 0.1)):
            options = f"confidence={confidence:g},activate={activate},add={add}"
            pairs[f"d2f:block={block},{options}"] = base
    return pairs


def measure(
    model: Transformer, texts: list[str], prompts: list[torch.Tensor], length: int, repeats: int
) -> list[dict[str, float | str]]:
    """Decode all prompts with all decoders in turns, and return a row per decoder."""
    runs: dict[str, list[Decoded]] = {}
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for text in texts:
            settings, begun = parse_decoder(text), time.process_time()
            runs[text] = [decode(model, prompt, settings, length=length) for prompt in prompts]
            times[text].append(time.process_time() - begun)
    rows: list[dict[str, float | str]] = []
    for text in texts:
        seconds = min(times[text])
        useful = sum(sum(each.useful) for each in runs[text])
        forwards = sum(each.forwards for each in runs[text])
        rows.append(
            {
                "decoder": text,
                "tokens_per_forward": useful / forwards,
                "tokens_per_second": useful / seconds,
                "seconds_per_answer": seconds / len(prompts),
            }
        )
    return rows


def main() -> None:
    """Measure every decoder on one model, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--confidence", type=float, nargs="*", default=[0.9, 0.6, 0.3])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_export(given.run)
    model.set_context_length(max(model.context_length, given.prompt + given.length))
    prompts = prompts_of(given.text, given.prompts, given.prompt)
    pairs = decoders_of(given.block, given.confidence)
    texts = ["ar", f"llada:block={given.block}", *pairs]
    rows = measure(model, texts, prompts, given.length, given.repeats)
    speeds = {str(row["decoder"]): float(row["tokens_per_second"]) for row in rows}
    for row in rows:
        base = pairs.get(str(row["decoder"]))
        row["over_blocks"] = speeds[str(row["decoder"])] / speeds[base] if base else float("nan")
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            numbers = [f"{value:10.3f}" for value in row.values() if not isinstance(value, str)]
            print(f"{row['decoder']:<60}{''.join(numbers)}")
    if given.profile:
        text = next(text for text in texts if text.startswith("d2f"))
        with torch.profiler.profile() as profile:
            decode(model, prompts[0], parse_decoder(text), length=given.length)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


if __name__ == "__main__":
    main()
