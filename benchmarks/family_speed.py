"""Speed of training and decoding of twelve families relative to their classes in transformers.

The promise is at least the speed of each class on one CPU thread in bf16 at about 8M parameters.
Both run without compilation, in one process and in turns, so that load of the machine affects both.
A ratio is that of the fewest CPU seconds: of a training step (forward and backward under bf16
autocast, 8 sequences of 128 tokens), and of a greedy generation in bf16 (8 sequences, 128 tokens
in, 32 out).

    python benchmarks/family_speed.py [--families gpt2 lfm2] [--turns 6]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import finish
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.trainers.generation.step_decoder import StepDecoder
from shapelaw.trainers.models.hugging_face import export
from shapelaw.trainers.models.transformer import Transformer

VOCABULARY, LENGTH, SEQUENCES, OUTPUTS = 4096, 128, 8, 32
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 768,
    "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
SPARSE = {**COMMON, "intermediate_size": 512, "num_hidden_layers": 6, "num_experts_per_tok": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 256, "n_layer": 8, "n_head": 4,
             "n_positions": 256},
    "llama": COMMON,
    "qwen2": COMMON,
    "qwen3": {**COMMON, "head_dim": 64},
    "olmo2": COMMON,
    "smollm3": COMMON,
    "gemma3_text": {**COMMON, "head_dim": 64, "sliding_window": 32},
    "lfm2": COMMON,
    "qwen3_moe": {**SPARSE, "head_dim": 64, "num_experts": 8, "moe_intermediate_size": 128,
                  "norm_topk_prob": True},
    "deepseek_v3": {**SPARSE, "num_key_value_heads": 4, "q_lora_rank": 96, "kv_lora_rank": 64,
                    "qk_nope_head_dim": 48, "qk_rope_head_dim": 16, "v_head_dim": 64,
                    "n_routed_experts": 8, "n_group": 1, "topk_group": 1,
                    "first_k_dense_replace": 1, "moe_intermediate_size": 128},
    "gpt_oss": {**SPARSE, "intermediate_size": 128, "head_dim": 64, "num_local_experts": 8,
                "sliding_window": 32},
    "llama4_text": {**SPARSE, "intermediate_size": 128, "intermediate_size_mlp": 512,
                    "head_dim": 64, "num_local_experts": 8, "num_experts_per_tok": 1,
                    "attention_chunk_size": 32},
}  # fmt: skip
Action = Callable[[], object]


def training_step(model: torch.nn.Module, logits: Callable[[Tensor], Tensor]) -> Action:
    """Make a forward and backward pass under bf16 autocast."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)

    def step() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = logits(tokens[:, :-1])
        F.cross_entropy(output.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()

    return step


def our_generation(model: Transformer, prompt: Tensor) -> Action:
    """Make a greedy generation of shapelaw."""

    @torch.inference_mode()
    def generate() -> None:
        decoder = StepDecoder(model, batch=SEQUENCES, length=LENGTH + OUTPUTS)
        logits = decoder.prefill(prompt)
        for position in range(LENGTH, LENGTH + OUTPUTS - 1):
            logits = decoder.step(logits.argmax(dim=-1), position)

    return generate


def their_generation(model: Any, prompt: Tensor) -> Action:
    """Make a greedy generation of transformers."""

    @torch.inference_mode()
    def generate() -> None:
        output = model(prompt, use_cache=True, logits_to_keep=1)
        for _ in range(OUTPUTS - 1):
            token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)

    return generate


def fastest(actions: dict[str, Action], turns: int) -> dict[str, float]:
    """Measure the fewest CPU seconds of each action, in turns."""
    seconds = dict.fromkeys(actions, float("inf"))
    for turn in range(turns + 1):
        for name, action in actions.items():
            begun = time.process_time()
            action()
            if turn:  # the first turn warms up
                seconds[name] = min(seconds[name], time.process_time() - begun)
    return seconds


def compare(model_type: str, turns: int) -> dict[str, object]:
    """Measure one family."""
    architecture = read_architecture({"model_type": model_type, **CONFIGS[model_type]})
    ours = {}
    for path in ("matmul", "sdpa"):
        ours[path] = Transformer(architecture, context_length=256, attention=path)
        ours[path].initialise(0)
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), ours["sdpa"], max_position_embeddings=256)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    training = {
        **{path: training_step(m, lambda t, m=m: m.logits(m(t))) for path, m in ours.items()},
        "transformers": training_step(theirs, lambda t: theirs(t, use_cache=False).logits),
    }
    trained = fastest(training, turns)
    prompt = torch.randint(VOCABULARY, (SEQUENCES, LENGTH))
    half = copy.deepcopy(ours["sdpa"]).bfloat16().eval()
    served = fastest(
        {
            "shapelaw": our_generation(half, prompt),
            "transformers": their_generation(theirs.bfloat16().eval(), prompt),
        },
        turns,
    )
    step = min(trained["matmul"], trained["sdpa"])
    return {
        "family": model_type,
        "n_total": int(architecture.n_total),
        "training_milliseconds": {
            "shapelaw": round(1e3 * step, 1),
            "transformers": round(1e3 * trained["transformers"], 1),
        },
        "training_ratio": round(trained["transformers"] / step, 3),
        "decoding_milliseconds": {name: round(1e3 * value, 1) for name, value in served.items()},
        "decoding_ratio": round(served["transformers"] / served["shapelaw"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--turns", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for model_type in options.families:
        rows.append(compare(model_type, options.turns))
        print(rows[-1], flush=True)
    finish("family_speed", {"promise_ratio": 1.0, "families": rows, "torch": torch.__version__})


if __name__ == "__main__":
    main()
