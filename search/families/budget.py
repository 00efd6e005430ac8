"""Models of every family with the same number of active non-embedding parameters.

All models of a budget N have the same depth, hidden size, heads and key-value heads, as far as the
family has them; the width of the MLP, or of an expert, makes up the difference of the parameters.

- Layers L: 6, from N = 1M on 12, from N = 100M on 24. Six layers hold one period of every pattern.
- Hidden size d: near √(N / 8L), where attention takes 3·d² and the MLP 5·d² of a layer.
- Heads: an even number of 32 dimensions near d / 32, half as many key-value heads.
- Windows, chunks and ranks are the family's share of the context or of d; see :data:`TEMPLATES`.
- Experts: 8, of which a token passes two, and a shared one beside them in DeepSeek V3 and Kimi K2
  (12 experts); Llama 4 has one of 8 and a shared one.

Rotary positions have the base 10,000 and no scaling, the embedding is tied, and the vocabulary is
that of the corpus: these belong to the recipe and not to the family.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.canon import PLACES
from shapelaw.scaling.architectures.config import CANON_SUFFIX, read_architecture
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import format_count
from shapelaw.trainers.optimizers.noise import NEXT_TOKEN, parse_objective

TOLERANCE = 0.01  # relative difference of active parameters from the budget, at most
HEAD_DIM = 32
HIDDEN_STEP = 16
DEPTHS = ((1_000_000, 6), (100_000_000, 12))  # layers below a number of parameters
DEEPEST = 24
BUDGETS = (1_000, 10**11)  # least and most parameters of a comparison
EXPERTS = 8
CANON_MARK = "canon-"
FURTHER_VARIANTS = (
    *("llama+canon-AC", "llama+canon-ABCD"),
    *("llama+masked_diffusion", "llama+block:16"),
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes that all models of a budget share.

    ``width`` is the width of the MLP, or of one expert, which differs between families.
    """

    layers: int
    hidden: int
    heads: int
    context: int
    vocabulary: int
    width: int = 1

    @property
    def groups(self) -> int:
        """Key-value heads."""
        return self.heads // 2

    def part_of_context(self, parts: int) -> int:
        """Return a share of the context, in tokens, at least 4."""
        return max(self.context // parts, 4)

    @property
    def common(self) -> dict[str, Any]:
        """Fields that most configs share."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "head_dim": HEAD_DIM,
            "intermediate_size": self.width,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": self.context,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "tie_word_embeddings": True,
        }


Template = Callable[[Size], dict[str, Any]]


def plain_template(**fields: Any) -> Template:
    """Make a template of the usual fields, and further ones."""
    return lambda size: {**size.common, **fields}


def gpt2(size: Size) -> dict[str, Any]:
    """Write a GPT-2: heads of d / H dimensions, as its config class has no other."""
    return {
        "vocab_size": size.vocabulary,
        "n_positions": size.context,
        "n_embd": size.hidden,
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_inner": size.width,
    }


def mistral(size: Size) -> dict[str, Any]:
    """Write a Mistral with a window of half the context (7B v0.1: 4,096 of 8,192)."""
    return {**size.common, "sliding_window": size.part_of_context(2)}


def gemma3(size: Size) -> dict[str, Any]:
    """Write a Gemma 3: five layers with a window of an eighth of the context, then a full one."""
    return {
        **_gemma(size),
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window_pattern": 6,
    }


def _gemma(size: Size) -> dict[str, Any]:
    rotary = {"rope_type": "default", "rope_theta": 10_000.0}
    kinds = ("full_attention", "sliding_attention")
    return {
        **size.common,
        "sliding_window": size.part_of_context(8),
        "rope_parameters": dict.fromkeys(kinds, rotary),
    }


def gemma3n(size: Size) -> dict[str, Any]:
    """Write a Gemma 3n: ranks are d / 8 (tables) and d / 12 (Laurel); E2B has d / 8 and d / 32.

    A sixth of the layers shares the cache of an earlier one, and the first third has sparse MLPs,
    as in E2B's 30 layers.
    """
    sparse = size.layers // 3
    return {
        **_gemma(size),
        "vocab_size_per_layer_input": size.vocabulary,
        "hidden_size_per_layer_input": max(size.hidden // 8, 2),
        "laurel_rank": max(size.hidden // 12, 2),
        "num_kv_shared_layers": size.layers // 6,
        "activation_sparsity_pattern": [0.95] * sparse + [0.0] * (size.layers - sparse),
    }


def lfm2(size: Size) -> dict[str, Any]:
    """Write an LFM2: every third layer is attention (1.2B: 6 of 16), others are convolutions."""
    kinds = [("conv", "conv", "full_attention")[index % 3] for index in range(size.layers)]
    common = {name: value for name, value in size.common.items() if name != "rms_norm_eps"}
    return {
        **common,
        "norm_eps": 1e-5,
        "block_auto_adjust_ff_dim": False,
        "layer_types": kinds,
    }


def qwen3_moe(size: Size) -> dict[str, Any]:
    """Write a Qwen3-MoE with two active experts of 8 in every layer."""
    return {
        **size.common,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": size.width,
        "norm_topk_prob": True,
    }


def deepseek_v3(size: Size) -> dict[str, Any]:
    """Write a DeepSeek V3: latents of d / 2 and 3·d / 4, one shared and two routed experts of 8.

    The published latents (d / 14 and d / 5) would have three and ten numbers here. Half of the 32
    dimensions of a head carry positions. The first layer is dense; its MLP takes what three experts
    cannot share equally, so that the layers together have the MLP width of the other families.
    """
    each, left = divmod(size.width, 3)
    return {
        **size.common,
        "num_key_value_heads": size.heads,
        "intermediate_size": size.width + (size.layers - 1) * left,
        "moe_intermediate_size": max(each, 1),
        "q_lora_rank": 3 * size.hidden // 4,
        "kv_lora_rank": size.hidden // 2,
        "qk_nope_head_dim": HEAD_DIM // 2,
        "qk_rope_head_dim": HEAD_DIM // 2,
        "v_head_dim": HEAD_DIM,
        "first_k_dense_replace": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 4,
        "topk_group": 2,
    }


def kimi_k2(size: Size) -> dict[str, Any]:
    """Write a Kimi K2: DeepSeek V3 with half again as many experts, one group, another factor."""
    return {
        **deepseek_v3(size),
        "n_routed_experts": 3 * EXPERTS // 2,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.827,
    }


def llama4(size: Size) -> dict[str, Any]:
    """Write a Llama 4: every second MLP is a shared expert and one of 8, chunks of T / 4.

    Dense MLPs have twice the width of an expert, as in Maverick.
    """
    chunk = size.part_of_context(4)
    return {
        **size.common,
        "intermediate_size_mlp": 2 * size.width,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": chunk,
        "floor_scale": chunk,
    }


def gpt_oss(size: Size) -> dict[str, Any]:
    """Write a gpt-oss with two active experts of 8, and a window of T / 8 on every other layer."""
    return {
        **size.common,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "sliding_window": size.part_of_context(8),
    }


TEMPLATES: dict[str, Template] = {
    **{name: plain_template() for name in ("llama", "qwen2", "qwen3", "smollm3", "olmo2", "arcee")},
    "nanochat": plain_template(),
    "mistral": mistral,
    "gpt2": gpt2,
    "gemma3_text": gemma3,
    "gemma3n_text": gemma3n,
    "lfm2": lfm2,
    "qwen3_moe": qwen3_moe,
    "deepseek_v3": deepseek_v3,
    "kimi_k2": kimi_k2,
    "llama4_text": llama4,
    "gpt_oss": gpt_oss,
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One entry of a comparison: a family, perhaps with Canon layers, and its objective.

    Parameters
    ----------
    family
        Model type of :data:`TEMPLATES`.
    canon
        Places of Canon layers, such as ``"AC"``; empty without.
    objective
        Objective of the training.
    """

    family: str
    canon: str = ""
    objective: str = NEXT_TOKEN

    @property
    def name(self) -> str:
        """Name in tables and options, such as ``llama+canon-AC`` or ``llama+block:16``."""
        canon = f"+{CANON_MARK}{self.canon}" if self.canon else ""
        return self.family + canon + (f"+{self.objective}" if self.objective != NEXT_TOKEN else "")

    def config(self, size: Size) -> dict[str, Any]:
        """Write the config at a size."""
        config = {"model_type": self.family, **TEMPLATES[self.family](size)}
        if self.canon:
            config |= {"model_type": self.family + CANON_SUFFIX, "canon_set": self.canon}
        return config


def all_variants() -> list[Variant]:
    """Return every family that predicts the next token, and Llama with Canon layers or masks."""
    return [variant_named(name) for name in (*TEMPLATES, *FURTHER_VARIANTS)]


def variant_named(name: str) -> Variant:
    """Parse the name of a variant: a model type, ``llama+canon-AC`` or ``llama+masked_diffusion``.

    Raises
    ------
    InputError
        The family or objective is unknown, or the places of Canon layers are no letters of ABCD.
    """
    family, *parts = name.strip().split("+")
    if family not in TEMPLATES:
        raise InputError(
            f"`--families` must be of {', '.join(TEMPLATES)}, with +canon-AC or +block:16, but got "
            f"{shown(name, 40)}"
        )
    canon = [part.removeprefix(CANON_MARK) for part in parts if part.startswith(CANON_MARK)]
    objectives = [part for part in parts if not part.startswith(CANON_MARK)]
    places = canon[0] if canon else ""
    if canon and (not places or not set(places) <= set(PLACES) or len(set(places)) < len(places)):
        raise InputError(
            f"`--families` must name places of Canon layers by different letters of {PLACES}, but "
            f"got {shown(name, 40)}; write {family}+canon-AC"
        )
    if len(canon) > 1 or len(objectives) > 1:
        raise InputError(
            "`--families` takes one +canon-PLACES and one objective of a family, but got "
            f"{shown(name, 40)}; name two variants"
        )
    objective = objectives[0] if objectives else NEXT_TOKEN
    parse_objective(objective)
    return Variant(family=family, canon="".join(sorted(places)), objective=objective)


def parse_variants(text: str | None, baseline: str) -> list[Variant]:
    """Parse names separated by commas, the baseline first; None stands for all variants.

    Raises
    ------
    InputError
        A name is unknown or stands twice.
    """
    names = [part for part in (text or "").split(",") if part.strip()]
    variants = [variant_named(name) for name in names] if text is not None else all_variants()
    if len(set(variants)) < len(variants):
        twice = next(each.name for each in variants if variants.count(each) > 1)
        raise InputError(
            f"`--families` must name each once, but {twice} stands twice; leave it out"
        )
    base = variant_named(baseline)
    others = [variant for variant in variants if variant != base]
    if not others:
        raise InputError(
            f"`--families` must name a family beside the baseline {base.name}, but got "
            f"{shown(text, 40)}; add one, or leave the option out for all"
        )
    return [base, *others]


def common_size(parameters: int, *, context: int, vocabulary: int) -> Size:
    """Choose the depth, hidden size and heads of all models of a budget."""
    layers = next((depth for limit, depth in DEPTHS if parameters < limit), DEEPEST)
    target = (parameters / (8 * layers)) ** 0.5
    heads = 2 * max(round(target / (2 * HEAD_DIM)), 1)
    unit = HIDDEN_STEP if heads <= 2 else heads * 8  # heads divide the hidden size
    hidden = unit * max(round(target / unit), 1)
    return Size(layers=layers, hidden=hidden, heads=heads, context=context, vocabulary=vocabulary)


def model_at(variant: Variant, parameters: int, size: Size) -> Architecture | None:
    """Return the model whose active parameters are nearest to a budget; None outside of 1 %.

    The count grows with the MLP width, so that bisection finds the two widths around the budget.
    """

    def built(width: int) -> Architecture:
        return read_architecture(variant.config(_with_width(size, width)))

    low, high = 1, 2
    while built(high).n_active_non_embedding < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        below = built(middle).n_active_non_embedding < parameters
        low, high = (middle, high) if below else (low, middle)
    best = min((built(low), built(high)), key=lambda model: _distance(model, parameters))
    return best if _distance(best, parameters) <= TOLERANCE else None


def _with_width(size: Size, width: int) -> Size:
    return Size(**{**vars(size), "width": width})


def _distance(model: Architecture, parameters: int) -> float:
    return float(abs(model.n_active_non_embedding / parameters - 1))


def models_of_budget(
    variants: Iterable[Variant], parameters: int, *, context: int, vocabulary: int
) -> dict[Variant, Architecture]:
    """Return the model of every variant with a number of active parameters, within 1 %.

    Parameters
    ----------
    variants
        Variants to build.
    parameters
        Active non-embedding parameters, N.
    context
        Tokens of a training sequence.
    vocabulary
        Tokens of the corpus's tokenizer.

    Raises
    ------
    InputError
        A variant has no model within 1 % of the budget; the nearest larger one that all have is
        named.
    """
    least, most = BUDGETS
    if not least <= parameters <= most:
        raise InputError(
            f"`--params` must be from {format_count(least)} to {format_count(most)}, but got "
            f"{shown(parameters)}; proxies have 100K to 10M"
        )
    chosen = list(variants)
    models, missing = _models(chosen, parameters, context, vocabulary)
    if not missing:
        return models
    nearest = _nearest_budget(chosen, parameters, context, vocabulary)
    raise InputError(
        f"`--params` must be a budget that every family meets within {100 * TOLERANCE:g} %, but "
        f"{format_count(parameters)} has no model of {missing[0].name}; "
        + (f"use {nearest:,}" if nearest else "use at least 100K, or leave the family out")
    )


def _models(
    variants: Sequence[Variant], parameters: int, context: int, vocabulary: int
) -> tuple[dict[Variant, Architecture], list[Variant]]:
    size = common_size(parameters, context=context, vocabulary=vocabulary)
    models, missing = {}, []
    for variant in variants:
        model = model_at(variant, parameters, size)
        if model is None:
            missing.append(variant)
        else:
            models[variant] = model
    return models, missing


def _nearest_budget(
    variants: Sequence[Variant], parameters: int, context: int, vocabulary: int
) -> int | None:
    """Return the smallest of the larger budgets, in steps of 10 %, that all variants meet."""
    budget = float(parameters)
    while budget < 100.0 * parameters + 1e6:
        budget *= 1.1
        rounded = round(budget, 2 - len(str(int(budget))))
        if not _models(variants, int(rounded), context, vocabulary)[1]:
            return int(rounded)
    return None
