"""Specification of one run: shape, tokens, recipe, seeds and execution."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, ClassVar

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import architecture_config, read_architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import parse_json
from shapelaw.scaling.schema import MAX_INTEGER, Count, ReadBy, conform
from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.optimizers.noise import NEXT_TOKEN, parse_objective
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.conversion import Conversion
from shapelaw.trainers.training.execution import Execution, fastest_execution
from shapelaw.trainers.training.passes import (
    TrainingPass,
    training_flops_per_token,
    training_passes,
)

MAX_TOKENS = 10**15  # of one run, over twenty times the largest published ones
MAX_RUN_ID = 200  # bytes: a file name that leaves room for endings


def read_stored_model(value: object, place: str) -> Shape | Architecture:
    """Read the model of a stored run: an architecture by its config, or else a shape.

    Raises
    ------
    InputError
        The value is neither of the two.
    """
    config = value.get("config") if isinstance(value, Mapping) else None
    if isinstance(config, str):
        return read_architecture(parse_json(config, f"`{place}.config` of a run"))
    shape: Shape = conform(value, Shape, place)
    return shape


Model = Annotated[Shape | Architecture, ReadBy(read_stored_model)]


class Diverged(RuntimeError):
    """Error for a run whose loss is not finite any more."""


def safe_run_id(run_id: str) -> str:
    """Return a run id that is the name of a folder, and of no other place, on every system.

    Raises
    ------
    InputError
        The id is empty or too long, has a separator of paths or a control character, or begins with
        a dot.
    """
    is_name = run_id.isprintable() and not set(run_id) & set('/\\:*?"<>|')
    if not is_name or run_id[:1] in ("", ".", " ") or len(run_id.encode()) > MAX_RUN_ID:
        raise InputError(
            f"`run_id` must be the name of a folder: up to {MAX_RUN_ID} letters, digits and marks "
            f"such as . _ - without a path, but got {shown(run_id)}; rename the run"
        )
    return run_id


def model_for(recipe: Recipe, model: Shape | Architecture) -> Shape | Architecture:
    """Return the model that a recipe trains: with a mask token, if its objective needs one.

    The mask token is one more token at the end of the vocabulary, of a model that has none yet.
    """
    if not parse_objective(recipe.objective).is_diffusion:
        return model
    if isinstance(model, Shape):
        config = model.to_config(max_position_embeddings=recipe.context_length)
    elif model.embedding.mask_token is not None:
        return model
    else:
        config = architecture_config(model, max_position_embeddings=recipe.context_length)
    vocabulary = model.vocab_size
    return read_architecture(config | {"vocab_size": vocabulary + 1, "mask_token_id": vocabulary})


def text_vocabulary(model: Shape | Architecture) -> int:
    """Return the number of tokens of a model's tokenizer: those before a mask token at the end."""
    mask = model.embedding.mask_token if isinstance(model, Architecture) else None
    return mask if mask == model.vocab_size - 1 else model.vocab_size


def run_name(
    shape: Shape | Architecture, tokens: int, seed: int, objective: str = NEXT_TOKEN
) -> str:
    """Name a run by its shape or architecture, tokens, seed, and objective if it is another."""
    size = f"d{shape.hidden_size}-L{shape.num_hidden_layers}"
    if isinstance(shape, Architecture):
        digest = hashlib.sha256(shape.config_text().encode()).hexdigest()[:6]
        trained = "" if objective == NEXT_TOKEN else f"-{objective}"
        trained = trained.replace(":", "").replace("/", "-")
        return f"{shape.model_type}-{size}-{digest}{trained}-t{tokens}-s{seed}"
    qk = "-qk" if shape.qk_norm else ""
    heads = f"{shape.num_attention_heads}-{shape.num_key_value_heads}x{shape.head_dim}"
    return f"{size}-h{heads}-f{shape.intermediate_size}{qk}-t{tokens}-s{seed}"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Settings that determine the numbers of one run.

    ``branches`` are smaller token counts for which the same run gives rows. At each of them the run
    leaves the stable part of its schedule, decays, is evaluated, and returns (WSD-S, arXiv
    2410.05192). A branch has exactly the weights of a separate run of that many tokens. ``engine``
    is the execution of the steps, None until :meth:`with_engine` chooses it once. A ``conversion``
    begins with the weights of another run.
    """

    run_id: str
    shape: Model
    tokens: int
    recipe: Recipe
    seed: Count = 0
    data_seed: Count = 0
    role: str = "proxy"
    branches: tuple[int, ...] = ()
    engine: Execution | None = None
    conversion: Conversion | None = None
    _identities: ClassVar[dict[tuple[str, str], str]]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "_identities", {}
        )  # cache by corpus; not a field, as it affects no number
        safe_run_id(self.run_id)
        mask = self.shape.embedding.mask_token if isinstance(self.shape, Architecture) else None
        if mask is None and parse_objective(self.recipe.objective).is_diffusion:
            raise InputError(
                f"`objective` {self.recipe.objective} needs a model with `mask_token_id`, but "
                f"{self.run_id} has none; add a mask token, or train by next_token"
            )
        if not 1 <= self.tokens <= MAX_TOKENS:
            raise InputError(
                f"`tokens` must be from 1 to {MAX_TOKENS:.0e}, but got {shown(self.tokens)}; give "
                "a budget that can be trained"
            )
        for name in ("seed", "data_seed"):
            if not 0 <= getattr(self, name) <= MAX_INTEGER:
                raise InputError(
                    f"`{name}` must be from 0 to 2**63 - 1, but got {shown(getattr(self, name))}"
                )
        if not self.branches:
            return
        recipe, ends = self.recipe, self.ends
        if not all(0 < count < self.tokens for count in self.branches) or len(set(ends)) < len(
            ends
        ):
            raise InputError(
                "`branches` must be different token counts below `tokens`, but got "
                f"{', '.join(map(str, self.branches))} and {self.tokens}"
            )
        if recipe.warmup and not recipe.warmup_steps:
            raise InputError(
                "`branches` need a warm-up of the same length for every token count, but `warmup` "
                f"is {recipe.warmup:g} of the steps; set `warmup_steps`"
            )
        least = max(recipe.warmup_steps, 1)
        if recipe.stable_steps(ends[0]) < least:
            raise InputError(
                f"`branches` must leave at least {least} steps before the decay of the shortest, "
                f"but {ends[0]} steps leave {recipe.stable_steps(ends[0])}; give it more tokens"
            )

    @property
    def dense_shape(self) -> Shape:
        """Shape of the model.

        Raises
        ------
        InputError
            The model is an architecture of another family.
        """
        if isinstance(self.shape, Architecture):
            raise InputError(
                f"{self.run_id} must be a Llama-like shape where learning rates are checked, but "
                f"is of another architecture ({self.shape.model_type}); leave it out of the plan"
            )
        return self.shape

    @property
    def steps(self) -> int:
        """Optimiser steps of the longest branch."""
        return self.recipe.steps(self.tokens)

    @property
    def ends(self) -> list[int]:
        """Steps of every branch, ascending; the last is :attr:`steps`."""
        return sorted(self.recipe.steps(count) for count in (*self.branches, self.tokens))

    @property
    def all_steps(self) -> int:
        """Computed optimiser steps: those of the run and of the decays of its branches."""
        decays = (end - self.recipe.stable_steps(end) for end in self.ends[:-1])
        return self.steps + sum(decays)

    @property
    def passes(self) -> tuple[TrainingPass, ...]:
        """Passes of the model in one step."""
        recipe = self.recipe
        return training_passes(recipe.objective, recipe.context_length, self.conversion)

    @property
    def flops(self) -> float:
        """Training FLOPs of all steps, with output head and attention."""
        return self.all_steps * self.step_flops

    @property
    def step_flops(self) -> float:
        """Training FLOPs of one step, with output head and attention.

        A conversion has the mean over its phases.
        """
        length = self.recipe.context_length
        per_token = training_flops_per_token(self.shape, length, self.passes)
        return per_token * self.recipe.batch_tokens

    def with_engine(self, device: str = "cpu") -> "RunSpec":
        """Return the spec with the execution of the least predicted time, if it has none yet."""
        if self.engine is not None:
            return self
        steps = self.all_steps
        return self.computed_by(
            fastest_execution(
                self.shape,
                self.recipe,
                steps=steps,
                device=device,
                passes=self.passes,
            )
        )

    def computed_by(self, engine: Execution) -> "RunSpec":
        """Return the same run with another execution; its identity is not computed again."""
        same = replace(self, engine=engine)
        object.__setattr__(same, "_identities", self._identities)
        return same

    def batches(self, corpus: Corpus) -> Batches:
        """Return the training batches of the run, in its order of the text of a corpus."""
        return Batches(
            corpus.train(),
            context_length=self.recipe.context_length,
            sequences=self.recipe.sequences,
            seed=self.data_seed,
        )

    def identity(self, corpus: Corpus) -> str:
        """Return a digest of the run and its corpus, without names, roles and execution.

        The digest is computed once for a run and a corpus.
        """
        text = (corpus.sha256, corpus.tokenizer)
        if text not in self._identities:
            self._identities[text] = self._digest(*text)
        return self._identities[text]

    def _digest(self, *text: str) -> str:
        import torch

        deciding = [self.shape.row(), self.ends, self.recipe.deciding(), self.seed, self.data_seed]
        if self.conversion is not None:
            deciding.append(asdict(self.conversion))
        document = json.dumps([*deciding, *text, torch.__version__])
        return hashlib.sha256(document.encode()).hexdigest()

    def as_json(self) -> str:
        """Return JSON text from which :meth:`from_json` creates the same spec."""
        return json.dumps(asdict(self) | {"shape": self.shape.row()})

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """Create a spec from JSON text.

        Raises
        ------
        InputError
            The text is not JSON, or a field is missing or has another type or range.
        """
        spec: RunSpec = conform(parse_json(text, "the settings of a run"), cls)
        return spec
