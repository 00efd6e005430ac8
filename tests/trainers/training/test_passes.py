"""FLOPs and predicted time of training steps by objective, against counted matrix products."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.ladder.plan import Ladder, Planned
from shapelaw.trainers.models.lora import LoraSettings, add_adapters
from shapelaw.trainers.objectives.distillation import Distillation
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.conversion import D2F, Conversion, Phase
from shapelaw.trainers.training.execution import Execution, step_seconds
from shapelaw.trainers.training.loop import build_model
from shapelaw.trainers.training.passes import training_flops_per_token, training_passes
from shapelaw.trainers.training.spec import RunSpec, model_for

LENGTH, BLOCK = 128, 32  # four blocks of queries, in which the matmul attention hides no score
RECIPE = Recipe(context_length=LENGTH, sequences=2, dtype="float32")
SHAPE = Shape(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, vocab_size=64, qk_norm=True,
)  # fmt: skip
SCORES = 3 * 4 * 4 * 8 * 2  # FLOPs of a step per visible token: 4 heads of 8, two layers


def run_of(objective: str, sequences: int = RECIPE.sequences) -> RunSpec:
    recipe = replace(RECIPE, objective=objective, sequences=sequences)
    return RunSpec(
        run_id="counted", shape=model_for(recipe, SHAPE), tokens=recipe.batch_tokens, recipe=recipe,
        engine=Execution(attention="matmul"),
    )  # fmt: skip


def batch(sequences: int = RECIPE.sequences) -> Batch:
    drawn = torch.Generator().manual_seed(0)
    return Batch(torch.randint(0, 64, (sequences, LENGTH + 1), generator=drawn))


def counted_flops(spec: RunSpec) -> int:
    """Return the FLOPs that torch counts in the matrix products of one training step."""
    model = build_model(spec)
    with FlopCounterMode(display=False) as counter:
        loss, _ = objective_of(spec.recipe).loss(
            model, batch(spec.recipe.sequences), torch.Generator()
        )
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("objective", ["masked_diffusion", f"block:{BLOCK}", f"block:{LENGTH}"])
def test_flops_of_a_diffusion_step_are_those_that_torch_counts(objective: str) -> None:
    spec = run_of(objective)
    assert spec.step_flops == spec.flops == counted_flops(spec)


def test_flops_of_next_tokens_are_those_that_torch_counts_and_hidden_scores_less() -> None:
    """Norms count as weights of a shape; scores of 5/8 of all pairs are computed, for 1/2."""
    spec = run_of("next_token")
    norms = 2 * (2 * 16 + 2 * 8) + 16
    hidden = SCORES * LENGTH * (5 / 8 - 1 / 2)
    tokens = RECIPE.batch_tokens
    assert spec.step_flops == counted_flops(spec) + tokens * (6 * norms - hidden)


def test_flops_of_a_distillation_count_teacher_and_student() -> None:
    """The counted step is of both forward passes, before adapters are added."""
    spec = run_of(f"block:{BLOCK}")
    model = build_model(spec)
    assert isinstance(spec.shape, Architecture)
    passes = training_passes(
        f"block:{BLOCK}/{D2F}",
        LENGTH,
        Conversion(parent="p", weights="", parent_tokens=1, method=D2F,
                   phases=(Phase(block=BLOCK, share=1.0),)),
    )  # fmt: skip
    wanted = training_flops_per_token(spec.shape, LENGTH, passes) * RECIPE.batch_tokens
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Distillation(spec.recipe, BLOCK).loss(model, batch(), torch.Generator().manual_seed(0))
    teacher, student = passes
    assert (teacher.share, student.share) == (1 / 3, 1.0)
    whole = training_flops_per_token(spec.shape, LENGTH, (teacher,)) * RECIPE.batch_tokens
    assert wanted == pytest.approx(whole + 3 * (counter.get_total_flops() - whole))
    add_adapters(model, LoraSettings(rank=2), 0)  # weights are frozen: less is computed
    with FlopCounterMode(display=False) as trained:
        loss, _ = Distillation(spec.recipe, BLOCK).loss(
            model, batch(), torch.Generator().manual_seed(0)
        )
        loss.backward()
    assert counter.get_total_flops() < trained.get_total_flops() < wanted


@pytest.mark.parametrize("attention", ["sdpa", "matmul"])
def test_predicted_time_of_blocks_is_that_of_two_sequences_without_one_head(attention: str) -> None:
    """Everything but the constant, the layers' own time and the head counts twice."""
    engine = Execution(attention=attention)
    shape, wider = SHAPE, replace(SHAPE, vocab_size=2 * SHAPE.vocab_size)
    recipes = {name: replace(RECIPE, objective=name)
               for name in ("next_token", "masked_diffusion", "block:32", "block:128")}  # fmt: skip
    seconds = {name: step_seconds(shape, recipe, engine) for name, recipe in recipes.items()}
    assert seconds["masked_diffusion"] == seconds["next_token"] == seconds["block:128"]
    twice = replace(RECIPE, sequences=2 * RECIPE.sequences)
    head = step_seconds(wider, RECIPE, engine) - seconds["next_token"]
    assert seconds["block:32"] == pytest.approx(step_seconds(shape, twice, engine) - head)


def test_plan_of_blocks_costs_what_its_passes_cost() -> None:
    runs = [run_of(name, sequences=64) for name in ("masked_diffusion", "block:32")]
    ladder = Ladder(runs=tuple(Planned(spec=run, size="s") for run in runs), method="given")
    assert list(ladder.flops) == [counted_flops(run) for run in runs]
    assert 1.6 < ladder.seconds[1] / ladder.seconds[0] < 2
