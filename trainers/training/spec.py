"""Specification of one run: shape, tokens, recipe, seeds and execution."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.execution import Execution, fastest_execution


class Diverged(RuntimeError):
    """Error for a run whose loss is not finite any more."""


def run_name(shape: Shape, tokens: int, seed: int) -> str:
    """Name a run by its shape, tokens and seed."""
    qk = "-qk" if shape.qk_norm else ""
    heads = f"{shape.num_attention_heads}-{shape.num_key_value_heads}x{shape.head_dim}"
    size = f"d{shape.hidden_size}-L{shape.num_hidden_layers}"
    return f"{size}-h{heads}-f{shape.intermediate_size}{qk}-t{tokens}-s{seed}"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Settings that determine the numbers of one run.

    ``branches`` are smaller token counts for which the same run gives rows. At each of them the run
    leaves the stable part of its schedule, decays, is evaluated, and returns (WSD-S, arXiv
    2410.05192). A branch has exactly the weights of a separate run of that many tokens. ``engine``
    is the execution of the steps, None until :meth:`with_engine` chooses it once.
    """

    run_id: str
    shape: Shape
    tokens: int
    recipe: Recipe
    seed: int = 0
    data_seed: int = 0
    role: str = "proxy"
    branches: tuple[int, ...] = ()
    engine: Execution | None = None
    _identities: ClassVar[dict[tuple[str, str], str]]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "_identities", {}
        )  # cache by corpus; not a field, as it affects no number
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
    def flops(self) -> float:
        """Training FLOPs of all steps, with output head and attention."""
        return self.all_steps * self.step_flops

    @property
    def step_flops(self) -> float:
        """Training FLOPs of one step, with output head and attention."""
        per_token = self.shape.training_flops(self.recipe.context_length)
        return float(per_token * self.recipe.batch_tokens)

    def with_engine(self, device: str = "cpu") -> "RunSpec":
        """Return the spec with the execution of the least predicted time, if it has none yet."""
        if self.engine is not None:
            return self
        steps = self.all_steps
        return self.computed_by(
            fastest_execution(self.shape, self.recipe, steps=steps, device=device)
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

        deciding = [asdict(self.shape), self.ends, asdict(self.recipe), self.seed, self.data_seed]
        document = json.dumps([*deciding, *text, torch.__version__])
        return hashlib.sha256(document.encode()).hexdigest()

    def as_json(self) -> str:
        """Return JSON text from which :meth:`from_json` creates the same spec."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """Create a spec from JSON text."""
        values: Mapping[str, Any] = json.loads(text)
        engine = values.get("engine")
        nested = {
            "shape": Shape(**values["shape"]),
            "recipe": Recipe(**values["recipe"]),
            "branches": tuple(values.get("branches", ())),
            "engine": None if engine is None else Execution(**engine),
        }
        return cls(**(dict(values) | nested))
