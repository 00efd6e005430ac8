"""A session that computes log-probabilities by vLLM; the module imports only vLLM and its torch.

It is run by its path like the sessions of engines, see :mod:`shapelaw.search.engines.sessions`.
"""

import gc
import os
from typing import Any


class LogProbabilities:
    """vLLM with one exported model after the other."""

    def compute(
        self,
        *,
        folder: str,
        tokens: list[list[int]],
        outputs: int,
        vocab_size: int,
        options: dict[str, Any],
        environment: dict[str, str],
    ) -> dict[str, Any]:
        """Decode greedily; return the tokens and the log-probabilities after every token.

        ``cache_bytes`` are those of the cache per token, for each layer with keys and values.
        """
        os.environ.pop("VLLM_MLA_DISABLE", None)
        os.environ.update(environment)
        import torch
        from vllm import LLM, SamplingParams, TokensPrompt

        torch.set_num_threads(1)
        model = LLM(
            model=folder,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_logprobs=vocab_size,
            max_num_seqs=len(tokens),
            max_model_len=len(tokens[0]) + outputs,
            **options,
        )
        sampling = SamplingParams(
            max_tokens=outputs,
            ignore_eos=True,
            temperature=0.0,
            detokenize=False,
            prompt_logprobs=vocab_size,
            logprobs=vocab_size,
        )
        prompts = [TokensPrompt(prompt_token_ids=each) for each in tokens]
        answers = model.generate(prompts, sampling, use_tqdm=False)
        (specs,) = model.collective_rpc("get_kv_cache_spec")
        layers = [spec for spec in specs.values() if hasattr(spec, "num_kv_heads")]
        results: dict[str, Any] = {
            "cache_bytes": sorted(spec.page_size_bytes / spec.block_size for spec in layers),
            "sequences": [],
        }
        for answer in answers:
            rows = [*answer.prompt_logprobs[1:], *answer.outputs[0].logprobs]
            results["sequences"].append(
                {
                    "tokens": list(answer.outputs[0].token_ids),
                    "rows": [[row[i].logprob for i in range(vocab_size)] for row in rows],
                }
            )
        del model
        gc.collect()
        return results


Session = LogProbabilities  # worker.py looks this name up
