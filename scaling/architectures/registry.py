"""Families of architectures by the model type of their Hugging Face configs."""

from shapelaw.scaling.architectures.config_fields import ConfigFamily
from shapelaw.scaling.architectures.families.arcee import ARCEE
from shapelaw.scaling.architectures.families.deepseek_v3 import DEEPSEEK_V3, KIMI_K2
from shapelaw.scaling.architectures.families.dhara import DHARA
from shapelaw.scaling.architectures.families.gemma3 import GEMMA3
from shapelaw.scaling.architectures.families.gemma3n import GEMMA3N
from shapelaw.scaling.architectures.families.gpt2 import GPT2
from shapelaw.scaling.architectures.families.gpt_oss import GPT_OSS
from shapelaw.scaling.architectures.families.lfm2 import LFM2
from shapelaw.scaling.architectures.families.llada import DREAM, LLADA
from shapelaw.scaling.architectures.families.llada2 import LLADA2
from shapelaw.scaling.architectures.families.llama import LLAMA
from shapelaw.scaling.architectures.families.llama4 import LLAMA4
from shapelaw.scaling.architectures.families.mistral import MISTRAL
from shapelaw.scaling.architectures.families.nanochat import NANOCHAT
from shapelaw.scaling.architectures.families.olmo2 import OLMO2
from shapelaw.scaling.architectures.families.qwen2 import QWEN2
from shapelaw.scaling.architectures.families.qwen3 import QWEN3, QWEN3_MOE
from shapelaw.scaling.architectures.families.smollm3 import SMOLLM3

FAMILIES: dict[str, ConfigFamily] = {
    family.model_type: family
    for family in (
        *(LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, OLMO2, GEMMA3, GPT2, ARCEE, NANOCHAT),
        *(QWEN3_MOE, DEEPSEEK_V3, KIMI_K2, LLAMA4, GPT_OSS, LFM2, GEMMA3N),
        *(LLADA, LLADA2, DREAM, DHARA),
    )
}
# Multimodal model types, with the model type of the language model inside.
TEXT_MODELS = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "mistral3": "mistral",
    "lfm2_vl": "lfm2",
    "llama4": "llama4_text",
    "kimi_k25": "deepseek_v3",
    "llava": "llama",
    "llava_next": "llama",
}
