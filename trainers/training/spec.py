"""What one run is: shape, tokens, recipe, seeds, engine; and the corpus that it runs on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.execution import Execution, fastest_execution


class Diverged(RuntimeError):
    """The loss of a run is no longer a finite number."""


def run_name(shape: Shape, tokens: int, seed: int) -> str:
    """Name a run by its shape, tokens and seed."""
    qk = "-qk" if shape.qk_norm else ""
    heads = f"{shape.num_attention_heads}-{shape.num_key_value_heads}x{shape.head_dim}"
    size = f"d{shape.hidden_size}-L{shape.num_hidden_layers}"
    return f"{size}-h{heads}-f{shape.intermediate_size}{qk}-t{tokens}-s{seed}"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that decides the numbers of one run.

    ``branches`` are smaller token counts that the same run gives rows for: at each it leaves the
    stable part of its schedule, decays, is evaluated, and goes back (WSD-S, arXiv 2410.05192). A
    branch has the very weights of a run of that many tokens alone. ``engine`` is how the steps are
    computed; None until it is chosen, once, see :meth:`with_engine`.
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
        object.__setattr__(self, "_identities", {})  # by corpus; no field: it decides nothing
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
        """Optimiser steps that are computed: the run's and the decays of its branches."""
        decays = (end - self.recipe.stable_steps(end) for end in self.ends[:-1])
        return self.steps + sum(decays)

    @property
    def flops(self) -> float:
        """Training FLOPs of all steps, head and attention counted."""
        return self.all_steps * self.step_flops

    @property
    def step_flops(self) -> float:
        """Training FLOPs of one step, head and attention counted."""
        per_token = self.shape.training_flops(self.recipe.context_length)
        return float(per_token * self.recipe.batch_tokens)

    def with_engine(self, device: str = "cpu") -> "RunSpec":
        """Return the spec with the engine of the least predicted time, if it has none."""
        if self.engine is not None:
            return self
        steps = self.all_steps
        return self.computed_by(
            fastest_execution(self.shape, self.recipe, steps=steps, device=device)
        )

    def computed_by(self, engine: Execution) -> "RunSpec":
        """Return the same run with another engine; its identity is not hashed again."""
        same = replace(self, engine=engine)
        object.__setattr__(same, "_identities", self._identities)
        return same

    def identity(self, corpus: Corpus) -> str:
        """Digest what is trained on what; names, roles and the engine are no part of it.

        It is hashed once for a run and a corpus, and kept.
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
        """Text from which :meth:`from_json` makes the same spec."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """Read a spec."""
        values: Mapping[str, Any] = json.loads(text)
        engine = values.get("engine")
        nested = {
            "shape": Shape(**values["shape"]),
            "recipe": Recipe(**values["recipe"]),
            "branches": tuple(values.get("branches", ())),
            "engine": None if engine is None else Execution(**engine),
        }
        return cls(**(dict(values) | nested))
