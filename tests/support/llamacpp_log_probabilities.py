"""A session that computes log-probabilities by llama.cpp; the module imports only xllamacpp.

It is run by its path like the sessions of engines, see :mod:`shapelaw.search.engines.sessions`.
"""


class LogProbabilities:
    """llama.cpp with one GGUF file after the other."""

    def compute(
        self, *, path: str, tokens: list[int], outputs: int, vocab_size: int
    ) -> list[dict[str, float]]:
        """Return log-probabilities after a prompt and after each of some outputs, all ``a``."""
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = path
        settings.n_gpu_layers = 0
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 2 * len(tokens) + 64
        settings.n_parallel, settings.cpuparams.n_threads = 1, 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        disabled = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.flash_attn_type = disabled
        settings.warmup, settings.verbosity = False, 0
        settings.ctx_shift = settings.fit_params = False
        server = xllamacpp.Server(settings)
        request = {  # log-probabilities are without the bias, which selects a printable token
            "prompt": tokens, "max_tokens": outputs, "logprobs": vocab_size,
            "n_probs": vocab_size, "logit_bias": [["a", 1000.0]], "temperature": 0,
            "cache_prompt": False, "ignore_eos": True,
        }  # fmt: skip
        answer = server.handle_completions(request)
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        steps = answer["choices"][0]["logprobs"]["content"]
        return [
            {str(entry["id"]): entry["logprob"] for entry in step["top_logprobs"]} for step in steps
        ]


Session = LogProbabilities  # worker.py looks this name up
