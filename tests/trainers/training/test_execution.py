from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.preparation import prepare
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.next_token import NextToken, token_losses
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.execution import (
    ATTENTION_PATHS,
    COMPILATIONS,
    Execution,
    compile_seconds,
    fastest_execution,
    predicted_seconds,
)
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.spec import RunSpec

torch.set_num_threads(1)
# torch's own modules, loaded by its compiler.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
SHAPE = Shape(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, vocab_size=256, qk_norm=True,
)  # fmt: skip
LARGE = Shape(
    hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, vocab_size=4096,
)  # fmt: skip
RECIPE = Recipe(context_length=40, sequences=2)
ENGINES = [Execution(attention=a, compilation=c) for a in ATTENTION_PATHS for c in COMPILATIONS]


def model(attention: str) -> Transformer:
    built = Transformer(SHAPE, context_length=40, attention=attention)
    built.initialise(0)
    return built


def batch() -> torch.Tensor:
    return torch.randint(256, (2, 41), generator=torch.Generator().manual_seed(0))


QUICK = [e for e in ENGINES if (e.attention, e.compilation) not in {("sdpa", "layers")}]


@pytest.mark.slow
@pytest.mark.parametrize("engine", QUICK, ids=str)
def test_every_engine_computes_the_same_losses_and_gradients(
    engine: Execution, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch._dynamo.reset()
    wanted, got = model("sdpa"), model(engine.attention)
    reference = token_losses(wanted, batch(), RECIPE)
    cache = tmp_path_factory.getbasetemp() / "compiled"
    loss = engine.compile_loss(NextToken(RECIPE), got, cache)
    found, count = loss(got, Batch(batch()), torch.Generator())
    torch.testing.assert_close(found, reference.mean(), rtol=1e-4, atol=1e-5)
    assert count == reference.numel()
    reference.mean().backward()
    found.backward()
    for a, b in zip(got.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, LARGE], ids=["small", "large"])
def test_compiling_is_for_long_runs(shape: Shape) -> None:
    recipe = Recipe(context_length=256, sequences=4, dtype="bfloat16")
    assert fastest_execution(shape, recipe, steps=10).compilation == "none"
    assert fastest_execution(shape, recipe, steps=10**7).compilation != "none"


def test_a_proxy_is_not_compiled_where_that_takes_longer_than_it_saves() -> None:
    # Measured on one thread: 48.7 ms of a step without compilation, 32.5 with it, after 28.9 s.
    proxy = Shape(
        hidden_size=32, intermediate_size=216, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=16, vocab_size=256, qk_norm=True,
    )  # fmt: skip
    saved, compiling = 48.7e-3 - 32.5e-3, 28.9
    short, long = round(0.6 * compiling / saved), round(10 * compiling / saved)
    assert fastest_execution(proxy, Recipe(), steps=short).compilation == "none"
    assert fastest_execution(proxy, Recipe(), steps=long).compilation != "none"


def test_the_choice_is_the_least_predicted_time() -> None:
    for steps in (10, 1000, 100_000):
        seconds = [predicted_seconds(SHAPE, RECIPE, engine, steps=steps) for engine in ENGINES]
        chosen = fastest_execution(SHAPE, RECIPE, steps=steps)
        assert predicted_seconds(SHAPE, RECIPE, chosen, steps=steps) == min(seconds)


def test_predictions_are_positive_and_grow_with_the_work() -> None:
    for engine in ENGINES:
        assert compile_seconds(SHAPE, engine) >= 0
        small = predicted_seconds(SHAPE, RECIPE, engine, steps=100)
        assert 0 < small < predicted_seconds(SHAPE, RECIPE, engine, steps=200)
        assert small < predicted_seconds(LARGE, RECIPE, engine, steps=100)


def test_a_gpu_takes_the_fused_kernel() -> None:
    assert fastest_execution(SHAPE, RECIPE, steps=10**7, device="cuda") == Execution()


@pytest.mark.parametrize("name", ["attention", "compilation"])
def test_an_unknown_engine_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"`{name}` must be one of .* but got 'best'"):
        Execution(**{name: "best"})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "text.txt"
    text.write_text("".join(f"line {i} of {i % 7} words and {i % 11} more\n" for i in range(900)))
    return prepare(str(text), folder / "prepared")


def run(**changes: object) -> RunSpec:
    usual: dict[str, object] = {
        "run_id": "one", "shape": SHAPE, "tokens": 8 * RECIPE.batch_tokens, "recipe": RECIPE,
    }  # fmt: skip
    return RunSpec(**(usual | changes))  # type: ignore[arg-type]


def test_the_engine_is_chosen_once_and_kept_in_the_spec() -> None:
    chosen = run().with_engine()
    assert chosen.engine is not None
    assert RunSpec.from_json(chosen.as_json()) == chosen
    kept = run(engine=Execution(attention="sdpa")).with_engine()
    assert kept.engine == Execution(attention="sdpa")


def test_the_identity_of_a_run_does_not_depend_on_its_engine(corpus: Corpus) -> None:
    assert run().identity(corpus) == run(engine=Execution(attention="matmul")).identity(corpus)


def broken_compiler(function: object, **options: object) -> object:
    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("no C++ compiler")

    return fails


@pytest.mark.parametrize("compilation", ["layers", "whole"])
def test_a_failed_compilation_falls_back_with_a_note(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilation: str
) -> None:
    told: list[str] = []
    (wanted,) = train_run(run(engine=Execution(attention="matmul")), corpus, tmp_path / "eager")
    monkeypatch.setattr(torch, "compile", broken_compiler)
    planned = run(engine=Execution(attention="matmul", compilation=compilation))
    (row,) = train_run(planned, corpus, tmp_path / "failed", tell=told.append)
    assert row["loss"] == wanted["loss"]
    assert row["compilation"] == "none"
    assert told == [
        "compilation failed (RuntimeError: no C++ compiler); the run continues without it"
    ]


class Killed(Exception):
    pass


def test_a_run_that_fell_back_stays_without_compilation(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = run(engine=Execution(attention="matmul", compilation="whole"))

    def stop(step: int) -> None:
        if step == 4:
            raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(torch, "compile", broken_compiler)
        with pytest.raises(Killed):
            train_run(
                planned, corpus, tmp_path, watch=stop, tell=lambda text: None, checkpoint_seconds=0
            )

    def unexpected(*arguments: object, **options: object) -> object:
        raise AssertionError("compiled again")

    monkeypatch.setattr(torch, "compile", unexpected)
    (row,) = train_run(planned, corpus, tmp_path)
    assert row["compilation"] == "none"


@pytest.mark.slow
def test_a_compiled_run_that_is_killed_ends_like_an_undisturbed_one(
    corpus: Corpus, tmp_path: Path
) -> None:
    planned = run(engine=Execution(attention="matmul", compilation="whole"))

    def stop(step: int) -> None:
        if step == 5:
            raise Killed

    (wanted,) = train_run(planned, corpus, tmp_path / "straight")
    with pytest.raises(Killed):
        train_run(planned, corpus, tmp_path / "killed", watch=stop, checkpoint_seconds=0)
    torch._dynamo.reset()
    (row,) = train_run(planned, corpus, tmp_path / "killed")
    assert row["compilation"] == "whole"
    assert row["loss"] == wanted["loss"]
    assert replace(planned, engine=None).identity(corpus) == planned.identity(corpus)
