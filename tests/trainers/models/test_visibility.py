"""Kinds of attention mask, documents and caches: against loops in float64, and by influence."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.visibility import CAUSAL, FULL, Visibility
from support.loop_model import QWEN3, Loops
from support.tiny_configs import TINY_CONFIGS

LENGTH, BLOCK = 12, 4
# Rules of one token that sees another, written again for these tests.
Rule = Callable[[int, int], bool]


def block_of(position: int, visibility: Visibility) -> int:
    if position < visibility.origin:
        return 0
    return 1 + (position - visibility.origin) // visibility.block


def rule_of(visibility: Visibility, length: int) -> Rule:
    half = length // 2

    def sees(i: int, j: int) -> bool:
        if visibility.kind == "causal":
            return j <= i
        if visibility.kind == "full":
            return True
        if visibility.kind == "block":
            return block_of(j, visibility) <= block_of(i, visibility)
        own, other = block_of(i % half, visibility), block_of(j % half, visibility)
        if i < half:
            return own == other if j < half else other < own
        return j >= half and other <= own

    return sees


def source_of(visibility: Visibility, length: int) -> Callable[[int, int], int | None]:
    half = length // 2

    def source(t: int, j: int) -> int | None:
        if visibility.kind != "noisy_and_clean":
            return t - j if t >= j else None
        position = t % half
        if position < j:
            return None
        if t < half and block_of(position - j, visibility) < block_of(position, visibility):
            return half + position - j
        return t - j

    return source


VIEWS = {
    "causal": CAUSAL,
    "full": FULL,
    "block": Visibility("block", 4),
    "block of 5 after a prompt": Visibility("block", 5, 3),
    "noisy and clean": Visibility("noisy_and_clean", 3),
    "noisy and clean, 2 with a remainder": Visibility("noisy_and_clean", 4),
    "noisy and clean after a prompt": Visibility("noisy_and_clean", 2, 2),
}
views = pytest.mark.parametrize("visibility", VIEWS.values(), ids=VIEWS)
paths = pytest.mark.parametrize("attention", ["sdpa", "matmul"])


def randomised(model: Transformer) -> Transformer:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.4, generator=generator)
    return model.double().eval()


def built(
    attention: str, change: Callable[[Architecture], Architecture] | None = None, **fields: object
) -> Transformer:
    architecture = read_architecture({**QWEN3, **fields})
    architecture = architecture if change is None else change(architecture)
    return randomised(Transformer(architecture, context_length=64, attention=attention))


def text(length: int = LENGTH, batch: int = 2, vocabulary: int = 31) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (batch, length), generator=generator)


def positions_of(visibility: Visibility, length: int) -> list[int]:
    return [i % (length // 2) if visibility.kind == "noisy_and_clean" else i for i in range(length)]


def check(model: Transformer, loops: Loops, visibility: Visibility, **kwargs: object) -> None:
    """Compare the logits of a model with those of loops, and check that the mask matters."""
    tokens = text()
    found = model.logits(model(tokens, visibility=visibility, **kwargs)).detach().numpy()
    for row, logits in zip(tokens.numpy(), found, strict=True):
        wanted = loops.logits(row)
        assert np.abs(logits - wanted).max() < 1e-6 * np.abs(wanted).max()
    if visibility != CAUSAL:
        loops.sees, loops.source = rule_of(CAUSAL, LENGTH), source_of(CAUSAL, LENGTH)
        wanted = loops.logits(tokens[0].numpy())
        assert np.abs(found[0] - wanted).max() > 1e-2 * np.abs(wanted).max()


@views
@paths
def test_logits_of_every_kind_equal_those_of_loops(visibility: Visibility, attention: str) -> None:
    model = built(attention)
    loops = Loops(
        model,
        sees=rule_of(visibility, LENGTH),
        positions=positions_of(visibility, LENGTH),
    )
    check(model, loops, visibility)


@views
def test_convolutions_read_clean_text_before_their_block(visibility: Visibility) -> None:
    model = built("sdpa", canon_set="ABCD")
    loops = Loops(
        model,
        "ABCD",
        sees=rule_of(visibility, LENGTH),
        source=source_of(visibility, LENGTH),
        positions=positions_of(visibility, LENGTH),
    )
    check(model, loops, visibility)


@views
@paths
@pytest.mark.parametrize("chunked", [False, True])
def test_windows_reach_both_ways_and_chunks_limit_every_kind(
    visibility: Visibility, attention: str, chunked: bool
) -> None:
    def change(architecture: Architecture) -> Architecture:
        layers = tuple(
            (replace(layer, attention=replace(layer.attention, window=3, chunked=chunked)), number)
            for layer, number in architecture.layers
        )
        return replace(architecture, layers=layers)

    model = built(attention, change)
    positions, rule = positions_of(visibility, LENGTH), rule_of(visibility, LENGTH)

    def sees(i: int, j: int) -> bool:
        p, q = positions[i], positions[j]
        return rule(i, j) and (p // 3 == q // 3 if chunked else -3 < p - q < 3)

    check(model, Loops(model, sees=sees, positions=positions), visibility)


@views
@paths
def test_shared_keys_sinks_and_temperature_work_in_every_kind(
    visibility: Visibility, attention: str
) -> None:
    def change(architecture: Architecture) -> Architecture:
        (layer, _), *_ = architecture.layers
        first = replace(
            layer.attention, rotary=None, temperature=(0.5, 2.0), sinks=attention == "matmul"
        )
        layers = [
            (replace(layer, attention=block), 1)
            for block in (first, replace(first, shares_cache=True))
        ]
        return replace(architecture, layers=tuple(layers))

    model = built(attention, change)
    loops = Loops(
        model,
        sees=rule_of(visibility, LENGTH),
        positions=positions_of(visibility, LENGTH),
        temperature=(0.5, 2.0),
        shared=True,
    )
    check(model, loops, visibility)


@views
@paths
def test_documents_are_invisible_to_each_other_in_every_kind(
    visibility: Visibility, attention: str
) -> None:
    model = built(attention, canon_set="AB")
    # Padding, -1, stands before, between and after the documents.
    documents = [-1, 7, 7, 7, 7, 4, 4, 4, -1, -1, 9, 9]
    if visibility.kind == "noisy_and_clean":
        documents = documents[:6] * 2
    rule, reads = rule_of(visibility, LENGTH), source_of(visibility, LENGTH)

    def source(t: int, j: int) -> int | None:
        read = reads(t, j)
        return None if read is None or documents[read] != documents[t] else read

    loops = Loops(
        model,
        "AB",
        sees=lambda i, j: documents[i] == documents[j] and rule(i, j),
        source=source,
        positions=positions_of(visibility, LENGTH),
    )
    check(model, loops, visibility, documents=torch.tensor([documents, documents]))


@views
@paths
def test_latent_attention_of_every_kind_equals_loops(
    visibility: Visibility, attention: str
) -> None:
    config = {"model_type": "deepseek_v3", **TINY_CONFIGS["deepseek_v3-dense"]}
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    config |= {"num_hidden_layers": 1, "rms_norm_eps": 1e-6}
    architecture = read_architecture(config)
    model = randomised(Transformer(architecture, context_length=64, attention=attention))
    block, layer = architecture.layers[0][0].attention, model.layers[0]
    weights = {name: w.detach().numpy() for name, w in layer.self_attn.named_parameters()}
    kept: dict[str, np.ndarray] = {}
    layer.self_attn.register_forward_pre_hook(
        lambda module, inputs: kept.update(x=inputs[0][0].detach().numpy())
    )
    layer.self_attn.register_forward_hook(
        lambda module, inputs, out: kept.update(y=out[0].detach().numpy())
    )
    model(text(vocabulary=97), visibility=visibility)
    n, r, v = block.plain_head_dim, block.rotary_head_dim, block.value_head_dim
    positions, sees = positions_of(visibility, LENGTH), rule_of(visibility, LENGTH)

    def norm(name: str, row: np.ndarray) -> np.ndarray:
        return row / np.sqrt(np.mean(row**2) + 1e-6) * weights[f"{name}.weight"]

    def rotated(row: np.ndarray, position: int) -> np.ndarray:
        pairs = row[0::2] + 1j * row[1::2]  # neighbours are one complex number
        return pairs * np.exp(1j * position * 1e4 ** (-2 * np.arange(r // 2) / r))

    out = []
    queries, keys = [], []
    for row in kept["x"]:
        a = norm("q_a_layernorm", weights["q_a_proj.weight"] @ row)
        queries.append((weights["q_b_proj.weight"] @ a).reshape(-1, n + r))
        both = weights["kv_a_proj_with_mqa.weight"] @ row
        latent = norm("kv_a_layernorm", both[:-r])
        keys.append(((weights["kv_b_proj.weight"] @ latent).reshape(-1, n + v), both[-r:]))
    for i, query in enumerate(queries):
        mixed = []
        for head, q in enumerate(query):
            seen = [j for j in range(LENGTH) if sees(i, j)]
            turned = rotated(q[n:], positions[i])
            scores = [
                (q[:n] @ keys[j][0][head][:n])
                + (turned * rotated(keys[j][1], positions[j]).conj()).real.sum()
                for j in seen
            ]
            shares = np.exp(np.array(scores) / np.sqrt(n + r))
            values = np.stack([keys[j][0][head][n:] for j in seen])
            mixed.append(shares @ values / shares.sum())
        out.append(weights["o_proj.weight"] @ np.concatenate(mixed))
    np.testing.assert_allclose(kept["y"], np.stack(out), atol=1e-6 * np.abs(out).max())


FAMILIES = [*TINY_CONFIGS, "lfm2 with Canon", "qwen3 with Canon"]
families = pytest.mark.parametrize("family", FAMILIES)


def family_model(name: str, attention: str = "sdpa") -> Transformer:
    """Build the random model of a family, with Canon layers if its name says so."""
    key, _, canon = name.partition(" ")
    config = {"model_type": key.partition("-")[0], **TINY_CONFIGS[key]}
    if canon:
        config["canon_set"] = "ACD"
    model = Transformer(read_architecture(config), context_length=64, attention=attention)
    model.initialise(0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.tensors().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    experts = any(hasattr(layer.mlp, "router") for layer in model.layers)
    return (model if experts else model.double()).eval()  # experts compute in float32


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    # Rotary positions and routers compute in float32; Gemma 3n's streams amplify that.
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@torch.no_grad()
@families
@paths
def test_noisy_half_is_each_noisy_block_after_its_clean_text(family: str, attention: str) -> None:
    model = family_model(family, attention)
    clean, noisy = text(LENGTH, vocabulary=89), text(LENGTH, 4, vocabulary=89)[2:]
    both = model(torch.cat((noisy, clean), 1), visibility=Visibility("noisy_and_clean", BLOCK))
    alone = Visibility("block", BLOCK)
    close(both[:, LENGTH:], model(clean, visibility=alone))
    for begin in range(0, LENGTH, BLOCK):
        end = begin + BLOCK
        mixed = torch.cat((clean[:, :begin], noisy[:, begin:end]), dim=1)
        close(both[:, begin:end], model(mixed, visibility=alone)[:, begin:])


@torch.no_grad()
@families
def test_equal_halves_give_the_block_causal_pass_twice(family: str) -> None:
    model, tokens = family_model(family), text(LENGTH, vocabulary=89)
    wanted = model(tokens, visibility=Visibility("block", BLOCK))
    both = model(torch.cat((tokens, tokens), 1), visibility=Visibility("noisy_and_clean", BLOCK))
    close(both, torch.cat((wanted, wanted), dim=1))


@torch.no_grad()
@families
@pytest.mark.parametrize("origin", [0, 5])
def test_blocks_with_a_cache_equal_one_pass_without(family: str, origin: int) -> None:
    model, visibility = family_model(family), Visibility("block", BLOCK, origin)
    tokens = text(22, vocabulary=89)
    wanted = model(tokens, visibility=visibility)
    cache = model.empty_cache(2, 22, dtype=model.embed_tokens.weight.dtype)
    ends = [origin] * bool(origin) + [*range(origin + BLOCK, 22, BLOCK), 22]
    begin = 0
    for end in ends:
        noise = text(end - begin, 4, vocabulary=89)[2:]
        model(noise, cache=cache, start=begin, visibility=visibility, keep=0)  # leaves no trace
        given = {"cache": cache, "start": begin, "visibility": visibility}
        close(model(tokens[:, begin:end], **given), wanted[:, begin:end])
        begin = end


@torch.no_grad()
@families
def test_kept_part_of_a_longer_pass_is_that_part_alone(family: str) -> None:
    """A finished block is written while the next ones are still noisy, as in D2F."""
    model, visibility = family_model(family), Visibility("block", BLOCK)
    tokens, noise = text(20, vocabulary=89), text(20, 4, vocabulary=89)[2:]
    cache = model.empty_cache(2, 20, dtype=model.embed_tokens.weight.dtype)
    for begin in range(0, 20, BLOCK):
        end = min(begin + 2 * BLOCK, 20)
        mixed = torch.cat((tokens[:, begin : begin + BLOCK], noise[:, begin + BLOCK : end]), dim=1)
        given = {"cache": cache, "start": begin, "visibility": visibility, "keep": BLOCK}
        found = model(mixed, **given)
        whole = torch.cat((tokens[:, :begin], mixed), dim=1)
        close(found, model(whole, visibility=visibility)[:, begin:])


@torch.no_grad()
@families
@pytest.mark.parametrize("parts", [(1, 7, 1, 3), (9, 3)])
def test_causal_prefill_in_parts_equals_one_pass(family: str, parts: tuple[int, ...]) -> None:
    model, tokens = family_model(family), text(sum(parts), vocabulary=89)
    wanted, begin = model(tokens), 0
    cache = model.empty_cache(2, len(tokens[0]), dtype=model.embed_tokens.weight.dtype)
    for part in parts:
        end = begin + part
        close(model(tokens[:, begin:end], cache=cache, start=begin), wanted[:, begin:end])
        begin = end


@torch.no_grad()
@families
@pytest.mark.parametrize("name", ["full", "block", "noisy and clean"])
def test_padding_changes_no_token(family: str, name: str) -> None:
    model, visibility = family_model(family), VIEWS[name]
    tokens = text(LENGTH, vocabulary=89)
    documents = torch.zeros_like(tokens)
    documents[:, 4:6] = documents[:, 10:] = -1
    other = torch.where(documents < 0, (tokens + 1) % 89, tokens)
    first, second = (
        model(each, visibility=visibility, documents=documents) for each in (tokens, other)
    )
    apart = (first - second).abs().amax(dim=(0, 2))
    real = documents[0] == 0
    assert apart[real].max() < 1e-5  # grouped products of experts round by the sizes of groups
    assert apart[~real].min() > 1e-3  # the control


@torch.no_grad()
def test_documents_with_a_cache_hide_the_cached_tokens_of_others() -> None:
    model, tokens = built("sdpa", canon_set="AB"), text()
    documents = torch.tensor([[-1, -1, 3, 3, 3, 3, 3, 8, 8, 8, 8, 8]] * 2)
    wanted = model(tokens, documents=documents)
    cache = model.empty_cache(2, LENGTH, dtype=model.embed_tokens.weight.dtype)
    found = []
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        given = {"cache": cache, "start": begin, "documents": documents[:, :end]}
        found.append(model(tokens[:, begin:end], **given))
    close(torch.cat(found, dim=1), wanted)


def influence(model: Transformer, visibility: Visibility, length: int) -> torch.Tensor:
    """Return which tokens have a gradient from which, (length, length)."""
    kept: dict[str, torch.Tensor] = {}

    def keep(module: torch.nn.Module, inputs: object, out: torch.Tensor) -> torch.Tensor:
        kept["x"] = out.detach().requires_grad_()
        return kept["x"]

    hook = model.embed_tokens.register_forward_hook(keep)
    hidden = model(text(length, 1), visibility=visibility)
    hook.remove()
    rows = []
    for i in range(length):
        (gradient,) = torch.autograd.grad(hidden[0, i].sum(), kept["x"], retain_graph=True)
        rows.append(gradient[0].abs().amax(dim=1) > 0)
    return torch.stack(rows)


@views
@paths
@pytest.mark.parametrize("length", [12, 150])
def test_gradients_flow_from_the_visible_tokens_only(
    visibility: Visibility, attention: str, length: int
) -> None:
    rule = rule_of(visibility, length)
    wanted = torch.tensor([[rule(i, j) for j in range(length)] for i in range(length)])
    model = built(attention)
    model.set_context_length(256)
    assert torch.equal(influence(model, visibility, length), wanted)


@views
@pytest.mark.parametrize("length", [12, 150])
def test_both_attention_paths_agree_on_logits_and_gradients(
    visibility: Visibility, length: int
) -> None:
    found = []
    for attention in ("sdpa", "matmul"):
        model = built(attention)
        model.set_context_length(256)
        logits = model.logits(model(text(length), visibility=visibility))
        (gradient,) = torch.autograd.grad(logits.square().mean(), model.embed_tokens.weight)
        found.append((logits.detach(), gradient))
    for one, other in zip(*found, strict=True):
        close(one, other)


def test_evaluation_between_two_steps_does_not_disturb_the_masks() -> None:
    """A mask that is kept from inference mode could not be saved for a backward pass."""
    visibility = Visibility("block", 3)
    for attention in ("sdpa", "matmul"):
        model = built(attention)
        with torch.inference_mode():
            model(text(), visibility=visibility)
        model(text(), visibility=visibility).sum().backward()
        assert model.embed_tokens.weight.grad is not None


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Visibility("blocks", 4), "`kind` must be one of causal, full, block, noisy_and_"),
        (lambda: Visibility("block"), "`block` of kind block must be at least 1, but got 0"),
        (lambda: Visibility("full", 4), "`block` of kind full must be 0, but got 4"),
        (lambda: Visibility("block", 4, -1), "`origin` of kind block must be at least 0"),
        (lambda: Visibility("causal", 0, 3), "`origin` of kind causal must be 0, but got 3"),
    ],
)
def test_visibility_that_makes_no_sense_is_refused(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        make()


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"visibility": Visibility("noisy_and_clean", 4), "tokens": 7}, "two halves of one length"),
        ({"visibility": Visibility("noisy_and_clean", 4), "cached": True}, "for decoding use kind"),
        ({"keep": 2}, "`keep` must be None without a cache, but got 2"),
        ({"keep": 13, "cached": True}, "`keep` must be from 0 to 12, the tokens given, but got 13"),
        ({"documents": torch.zeros(2, 5)}, "`documents` must have 12 columns"),
        ({"documents": torch.zeros(2, 12), "cached": True, "start": 3}, "must have 15 columns"),
    ],
)
def test_passes_whose_arguments_do_not_fit_are_refused(given: dict, rule: str) -> None:
    model = built("sdpa")
    tokens = text(given.pop("tokens", LENGTH))
    if given.pop("cached", False):
        given["cache"] = model.empty_cache(2, 20, dtype=model.embed_tokens.weight.dtype)
    with pytest.raises(InputError, match=rule):
        model(tokens, **given)
