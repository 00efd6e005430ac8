import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.search.engines import _torch
from shapelaw.search.engines._memory import TORCH_DTYPES
from shapelaw.search.engines._timed import require_token_count
from shapelaw.search.engines._torch import TorchEngine, random_model
from shapelaw.search.workload import parse_workload
from shapelaw.trainers.generation import graph_decoder, matvec
from shapelaw.trainers.generation.cpu_decoder import Decoder, greedy
from shapelaw.trainers.generation.graph_decoder import GraphDecoder
from shapelaw.trainers.generation.matvec import Product, fastest_product, forms
from shapelaw.trainers.models.transformer import Transformer

torch.set_num_threads(1)
SHAPE = Shape(
    hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, head_dim=8, vocab_size=150, qk_norm=True,
)  # fmt: skip
PLAIN = replace(SHAPE, qk_norm=False, tie_word_embeddings=False, num_key_value_heads=6)
PROMPT, LENGTH = 9, 24
DECODERS = [Decoder, GraphDecoder]


def trained_like(shape: Shape, dtype: torch.dtype = torch.float32) -> Transformer:
    """Return a model whose norms have weights other than one, as after training."""
    model = Transformer(shape, context_length=LENGTH)
    model.initialise(3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
    return model.to(dtype)


def tokens(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(SHAPE.vocab_size, (batch, LENGTH), generator=generator)


def all_logits(model: Transformer, batch: int, kind: type[Decoder | GraphDecoder]) -> torch.Tensor:
    """Return the logits after the prompt and after every given token, (B, positions, V)."""
    decoder, given_tokens = kind(model, batch=batch, length=LENGTH), tokens(batch)
    logits = [decoder.prefill(given_tokens[:, :PROMPT])]
    steps = range(PROMPT, LENGTH)
    logits += [decoder.step(given_tokens[:, at], at).clone() for at in steps]
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", [SHAPE, PLAIN], ids=["qk-norm, tied", "plain"])
class TestEveryDecoder:
    def test_its_logits_equal_those_of_the_trained_model(
        self, kind: type[Decoder], batch: int, shape: Shape, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(graph_decoder, "BUCKET", 8)
        model = trained_like(shape)
        with torch.inference_mode():
            expected = model.logits(model(tokens(batch)))[:, PROMPT - 1 :]
            assert (all_logits(model, batch, kind) - expected).abs().max() < 1e-4

    def test_its_logits_in_bfloat16_are_as_near_to_float32_as_those_of_the_model(
        self, kind: type[Decoder], batch: int, shape: Shape
    ) -> None:
        exact, rounded = trained_like(shape), trained_like(shape, torch.bfloat16)
        with torch.inference_mode():
            expected = exact.logits(exact(tokens(batch)))[:, PROMPT - 1 :]
            whole = rounded.logits(rounded(tokens(batch)))[:, PROMPT - 1 :]
            logits = all_logits(rounded, batch, kind)
        own = (whole.float() - expected).abs().mean()
        assert (logits.float() - expected).abs().mean() < 1.5 * own


@pytest.mark.parametrize("kind", DECODERS)
def test_a_reused_decoder_repeats_its_logits(kind: type[Decoder]) -> None:
    with torch.inference_mode():
        decoder, given_tokens = kind(trained_like(SHAPE), batch=2, length=LENGTH), tokens(2)
        runs = []
        for _ in range(2):
            decoder.prefill(given_tokens[:, :PROMPT])
            steps = range(PROMPT, LENGTH)
            runs.append([decoder.step(given_tokens[:, at], at).clone() for at in steps])
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("dtype", TORCH_DTYPES.values())
@settings(max_examples=15)
@given(outputs=st.integers(1, 200), inputs=st.integers(1, 70))
def test_every_form_of_a_product_gives_the_values_of_the_plain_product(
    rows: int, dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    expected = x.double() @ weight.double().t()
    size = (x.double().abs() @ weight.double().abs().t()).max()
    tolerance = 4 * torch.finfo(dtype).eps * (1e-3 + size)
    for form in forms(rows, dtype):
        product = form(weight, rows)
        for _ in range(2):
            logits = product(x)
            assert logits.shape == (rows, outputs)
            assert logits.dtype == dtype
            assert (logits.double() - expected).abs().max() <= tolerance, form.__name__


def test_forms_are_timed_once_for_each_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matvec, "_fastest_by_geometry", {})
    timed = []
    monkeypatch.setattr(
        matvec,
        "_fastest_form",
        lambda weight, rows, others: timed.append(weight.shape) or forms(1, torch.float32)[0],
    )
    for size in (8, 16, 8):
        fastest_product(torch.ones(size, 4), 1, 100)
    assert timed == [(8, 4), (16, 4)]


def test_fastest_form_is_chosen_from_measured_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def lasting(seconds: float) -> Callable[[torch.Tensor, int], Product]:
        def product(x: torch.Tensor) -> torch.Tensor:
            now[0] += seconds
            return x

        return lambda weight, rows: product

    slow, fast = lasting(3.0), lasting(1.0)
    monkeypatch.setattr(matvec, "forms", lambda rows, dtype: [slow, fast, slow])
    monkeypatch.setattr(matvec.time, "thread_time", lambda: now[0])
    assert matvec._fastest_form(torch.ones(4, 4), 1, 64) is fast


@given(st.integers(1, 3), st.integers(1, 300), st.integers(0, 5), st.sampled_from([1, 3]))
def test_greedy_token_is_the_first_of_the_most_probable(
    batch: int, size: int, seed: int, values: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-values, values, (batch, size), generator=generator).float()
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert greedy(logits).tolist() == expected


def test_a_random_model_has_weights_of_usual_scale_in_the_requested_dtype() -> None:
    model = random_model(SHAPE, LENGTH, torch.bfloat16, torch.device("cpu"))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.embed_tokens.weight
    assert sum(weight.numel() for weight in model.parameters()) == SHAPE.n_total
    for weight in model.matrices():
        assert float(weight.detach().float().std()) == pytest.approx(
            weight.shape[1] ** -0.5, rel=0.1
        )
    logits = model.logits(model(tokens(2)))
    assert torch.isfinite(logits).all()


def test_the_server_prefills_once_and_decodes_one_token_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, ...]] = []

    class Watched(Decoder):
        def prefill(self, prompt: torch.Tensor) -> torch.Tensor:
            calls.append(tuple(prompt.shape))
            return super().prefill(prompt)

        def step(self, tokens: torch.Tensor, position: int) -> torch.Tensor:
            calls.append((*tokens.shape, position))
            return super().step(tokens, position)

    monkeypatch.setattr(_torch, "Decoder", Watched)
    TorchEngine(repeats=1).measure(SHAPE, parse_workload("20/6@3"))
    repeat = [(3, 20), *((3, position) for position in range(20, 25))]
    assert calls[:4] == repeat[:4], "a short warm-up comes first"
    assert calls[4:10] == repeat


def test_a_wrong_number_of_produced_tokens_is_refused() -> None:
    require_token_count(torch.zeros(2, 3), (2, 3))
    with pytest.raises(WorkError, match=r"produced \(2, 3\) tokens, not \(2, 4\)"):
        require_token_count(torch.zeros(2, 3), (2, 4))


def test_engine_for_a_gpu_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"`--engine torch:cuda` needs a GPU.*write torch"):
        TorchEngine("cuda")


@given(st.integers(1, 5000), st.data())
def test_every_position_has_a_graph_that_covers_it(length: int, data: st.DataObject) -> None:
    decoder = GraphDecoder.__new__(GraphDecoder)
    decoder.length = length
    position = data.draw(st.integers(0, length - 1))
    covered = min(-(-(position + 1) // graph_decoder.BUCKET) * graph_decoder.BUCKET, length)
    assert covered in decoder.covers()
    assert position < covered < position + 1 + graph_decoder.BUCKET


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_captured_step_on_a_gpu_gives_the_logits_of_the_model() -> None:
    model = trained_like(SHAPE).cuda()
    decoder, given_tokens = GraphDecoder(model, batch=2, length=LENGTH), tokens(2).cuda()
    with torch.inference_mode():
        expected = model.logits(model(given_tokens))
        decoder.prefill(given_tokens[:, :PROMPT])
        for position in range(PROMPT, LENGTH):
            logits = decoder.step(given_tokens[:, position], position)
            assert (logits - expected[:, position]).abs().max() < 1e-3


def test_the_engine_imports_torch_and_numpy_only() -> None:
    script = (
        "import sys, shapelaw.search.engines._torch; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    others = {"optuna", "pandas", "scipy", "matplotlib", "transformers", "pooch", "typer", "rich"}
    assert not others & set(done.stdout.split())
    assert {"torch", "numpy", "shapelaw"} <= set(done.stdout.split())
