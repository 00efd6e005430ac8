"""Changes of tiny configs under which an engine computes them as the trainer does."""

from typing import Any

from support.tiny_configs import LLAMA3, YARN

PUBLISHED_LLAMA4 = {
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "floor_scale": 8192,
    "attn_temperature_tuning": True,
}
LATENT = {"rms_norm_eps": 1e-6}
LLAMACPP_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2 untied": ("gpt2", {"tie_word_embeddings": False}),
    "llama scaled": ("llama", {}),
    "llama with biases": ("llama-biases", {}),
    "mistral": ("mistral", {}),
    "qwen2 with yarn": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3 scaled linearly": (
        "qwen3",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "smollm3": ("smollm3", {}),
    "olmo2": ("olmo2", {}),
    "olmo2 tied": ("olmo2", {"tie_word_embeddings": True}),
    "arcee scaled": ("arcee", {"rope_parameters": LLAMA3}),
    "gemma3_text scaled": ("gemma3_text", {"query_pre_attn_scalar": 16}),
    "gemma3_text with a cap": ("gemma3_text-cap", {"query_pre_attn_scalar": 16}),
    "gemma3_text of 62 layers": (
        "gemma3_text",
        {
            "num_hidden_layers": 62,
            "head_dim": 32,
            "query_pre_attn_scalar": 16,
            "rope_parameters": None,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {}),
    "deepseek_v3": ("deepseek_v3-kimi", LATENT),
    "deepseek_v3 with yarn": (
        "deepseek_v3-kimi",
        {**LATENT, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek_v3 without a latent of queries": (
        "deepseek_v3-kimi",
        {**LATENT, "q_lora_rank": None, "num_hidden_layers": 27},
    ),
    "llama4_text": ("llama4_text", PUBLISHED_LLAMA4),
    "llama4_text of 128 experts": (
        "llama4_text-maverick",
        {**PUBLISHED_LLAMA4, "num_local_experts": 128},
    ),
    "gpt_oss": ("gpt_oss", {"swiglu_limit": 7.0, "rope_parameters": YARN}),
    "gpt_oss tied": (
        "gpt_oss",
        {"swiglu_limit": 7.0, "rope_parameters": YARN, "tie_word_embeddings": True},
    ),
    "gpt_oss with its own yarn": (
        "gpt_oss",
        {"swiglu_limit": 7.0, "head_dim": 64, "rope_parameters": None},
    ),
    "lfm2": ("lfm2", {}),
}


WIDE = {"hidden_size": 128}  # heads of 32, the smallest that vLLM has kernels for
HEADS = {"head_dim": 32}
LATENT_HEADS = {**LATENT, "qk_nope_head_dim": 24}
CHUNKED = {**HEADS, "attention_chunk_size": 128}
VLLM_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 128}),
    "llama scaled": ("llama", HEADS),
    "llama with biases": ("llama-biases", WIDE),
    "mistral with windows": ("mistral-window", WIDE),
    "qwen2 with yarn": ("qwen2", WIDE),
    "qwen2 with windows on all layers": ("qwen2-window", {**WIDE, "max_window_layers": 0}),
    "qwen3": ("qwen3", HEADS),
    "gemma3_text": ("gemma3_text", HEADS),
    "gemma3_text with a cap": ("gemma3_text-cap", HEADS),
    "olmo2": ("olmo2", WIDE),
    "smollm3": ("smollm3", WIDE),
    "arcee": ("arcee", WIDE),
    "lfm2": ("lfm2", WIDE),
    "deepseek_v3 without experts": ("deepseek_v3-dense", LATENT_HEADS),
    "deepseek_v3 without a latent of queries": (
        "deepseek_v3-dense",
        {**LATENT_HEADS, "q_lora_rank": None},
    ),
    "deepseek_v3": ("deepseek_v3", LATENT_HEADS),
    "deepseek_v3 of one group": ("deepseek_v3-kimi", LATENT_HEADS),
    "qwen3_moe": ("qwen3_moe", HEADS),
    "llama4_text": ("llama4_text", CHUNKED),
    "gpt_oss": ("gpt_oss", {**HEADS, "swiglu_limit": 7.0, "intermediate_size": 128}),
}
