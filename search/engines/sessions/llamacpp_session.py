"""A session that runs llama.cpp on one thread; the module imports only xllamacpp."""

import random
import time
from typing import Any

MIN_BATCH = 32  # llama.cpp aborts on smaller batches


class LlamaCppSession:
    """llama.cpp with one GGUF file loaded; :meth:`serve` sends all prompts at once."""

    def load(self, *, path: str, workload: dict[str, int], kv_type: str) -> None:
        """Load a GGUF file with a cache for the whole workload."""
        import xllamacpp

        sequences, length = workload["concurrency"], workload["input_tokens"]
        settings = xllamacpp.CommonParams()
        settings.model.path = path
        settings.n_gpu_layers = 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.n_parallel = sequences
        settings.n_ctx = sequences * (length + workload["output_tokens"] + 1)
        # One logical batch holds all prompts, so that all sequences decode from the same step on.
        settings.n_batch = max(sequences * length, MIN_BATCH)
        settings.n_ubatch = min(settings.n_ubatch, settings.n_batch)
        settings.cache_type_k = settings.cache_type_v = getattr(xllamacpp.ggml_type, kv_type)
        settings.warmup, settings.cache_prompt, settings.verbosity = False, False, 0
        settings.ctx_shift = settings.fit_params = False
        self.server = xllamacpp.Server(settings)
        draw = random.Random(0)
        self.prompts = [
            draw.choices(range(workload["vocab_size"]), k=length) for _ in range(sequences)
        ]

    def serve(self, *, outputs: int) -> dict[str, Any]:
        """Generate tokens for all prompts; return the seconds and the tokens of each sequence."""
        request = {
            "prompt": self.prompts, "max_tokens": outputs, "ignore_eos": True,
            "temperature": 0, "cache_prompt": False,
        }  # fmt: skip
        cpu, begun = time.process_time(), time.perf_counter()
        answer = self.server.handle_completions(request)
        ended, used = time.perf_counter(), time.process_time() - cpu
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        timings = answer["timings"]
        if timings["prompt_n"] != len(self.prompts[0]):
            raise RuntimeError(f"only {timings['prompt_n']} tokens of a prompt were processed")
        decode = timings["predicted_ms"] / 1000
        return {
            "prefill": ended - begun - decode,
            "decode": decode,
            "cpu": used,
            # Every token of the file's vocabulary ends in `>`.
            "produced": [choice["text"].count(">") for choice in answer["choices"]],
        }


Session = LlamaCppSession  # worker.py looks this name up
