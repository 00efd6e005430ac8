"""Conversion of a finished run of a sweep to diffusion, as a further run of the sweep."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.config import architecture_config, read_architecture
from shapelaw.scaling.architectures.shape_config import architecture_of
from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import sha256
from shapelaw.scaling.units import parse_count
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ledger.entry import DONE
from shapelaw.trainers.models.hugging_face import WEIGHTS, load_export
from shapelaw.trainers.models.lora import LoraSettings, add_adapters
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.noise import BLOCK, NEXT_TOKEN
from shapelaw.trainers.optimizers.recipe import Recipe, parse_settings, read_pairs
from shapelaw.trainers.sweep.folder import Folder, existing_ledger
from shapelaw.trainers.sweep.status import shown_progress
from shapelaw.trainers.sweep.sweep import run_plan
from shapelaw.trainers.training.conversion import (
    D2F,
    D2F_BLOCK,
    Conversion,
    Phase,
    check_block,
    objective_name,
    plan_phases,
)
from shapelaw.trainers.training.execution import Execution, fastest_execution
from shapelaw.trainers.training.passes import training_passes
from shapelaw.trainers.training.spec import MAX_RUN_ID, RunSpec, model_for

ROLE = "conversion"
# Of the published recipe of D2F, but for the learning rate, which is 1e-5 for 8B parameters there.
D2F_RECIPE = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05}
PHASE_SETTINGS = ("warmup", "warmup_share", "decay_share")
NOISE_SETTINGS = ("mask_noise", "average")


@dataclass(frozen=True, kw_only=True)
class ConversionRequest:
    """Target of the conversion of a finished run, and its settings.

    Parameters
    ----------
    to
        ``diffusion``, ``block:16`` or another block size, or ``d2f`` (``d2f:32``).
    tokens
        Training tokens of the conversion, such as ``400K``.
    direct
        Train on the target from the first step, without warm-up and decay.
    warmup, warmup_share, decay_share
        As in :func:`shapelaw.trainers.training.conversion.plan_phases`; None for its default.
    average, mask_noise, rank
        As in :class:`shapelaw.trainers.training.conversion.Conversion`; None for its default.
    shift
        Keep the shift of the parent: position i predicts token i + 1, as in Dream. Only of a direct
        conversion to diffusion. By default each position predicts its own token, as in LLaDA.
    seed
        Seed of noise, masks and the order of the text.
    settings
        Changes of the parent's recipe as ``NAME=VALUE``.
    """

    to: str
    tokens: str
    direct: bool = False
    warmup: Sequence[int] | None = None
    warmup_share: float | None = None
    decay_share: float | None = None
    average: int | None = None
    mask_noise: float | None = None
    rank: int | None = None
    shift: bool = False
    seed: int = 0
    settings: Sequence[str] = ()

    def __post_init__(self) -> None:
        optional = (*PHASE_SETTINGS, *NOISE_SETTINGS, "rank")
        phases = () if self.direct else PHASE_SETTINGS
        read: tuple[str, ...] = ("rank",) if self.is_d2f else (*phases, *NOISE_SETTINGS)
        unused = [name for name in optional if getattr(self, name) is not None and name not in read]
        unused += ["direct"] * (self.is_d2f and self.direct)
        if self.shift and not (self.direct and self.to == "diffusion"):
            raise InputError(
                "`--shift` needs --to diffusion with --direct, since blocks do not see the states "
                f"that would predict their first tokens, but got --to {self.to}"
                + " without --direct"
                * (not self.direct)
            )
        if unused:
            purpose = f"--to {self.to}" + " with --direct" * (self.direct and not self.is_d2f)
            option = unused[0].replace("_", "-")
            raise InputError(
                f"`--{option}` has no effect in a conversion by {purpose}; leave it out"
            )

    @property
    def is_d2f(self) -> bool:
        """True for D2F, which trains adapters by distillation."""
        return self.to.partition(":")[0] == D2F

    def block(self, length: int) -> int:
        """Return the block size of the target for sequences of a length.

        Raises
        ------
        InputError
            The target has no known name, or the block size does not divide the length.
        """
        kind, separator, size = self.to.partition(":")
        if self.to == "diffusion":
            return length
        if self.to == D2F:
            return check_block(D2F_BLOCK, length, "--to")
        if kind not in (BLOCK, D2F) or not (separator and size.isascii() and size.isdigit()):
            raise InputError(
                "`--to` must be diffusion, block:SIZE, d2f or d2f:SIZE with a number of tokens, "
                f"but got {shown(self.to)}; give for example block:16"
            )
        return check_block(int(size[:12]), length, "--to")


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Finished run that is converted, with its row of the run table."""

    folder: Folder
    row: dict[str, object]
    spec: RunSpec
    model: Transformer

    @property
    def run_id(self) -> str:
        """Id of the run, or of the branch of a run."""
        return str(self.row["run_id"])


def convert_run(
    run: Path, request: ConversionRequest, *, ledger: str | None = None
) -> dict[str, object]:
    """Convert a finished run and return the row of the conversion.

    The conversion is a further run of the sweep of its parent, in its ledger, with its corpus. The
    same call continues it where it was stopped.

    Parameters
    ----------
    run
        Folder of a finished run in the folder of its sweep: ``SWEEP/runs/RUN_ID``.
    request
        Target and settings.
    ledger
        Address of a ledger outside the folder of the sweep.

    Raises
    ------
    InputError
        The run is not finished, has another objective than the conversion needs, or a setting is
        impossible.
    WorkError
        The conversion failed or diverged.
    """
    parent = read_parent(run, ledger)
    spec = plan_conversion(parent, request)
    corpus = Corpus.load(parent.folder.corpus)
    with shown_progress() as report:
        rows = run_plan([spec], corpus, parent.folder, workers=1, report=report, ledger=ledger)
    row = rows.iloc[-1].to_dict()
    if row["status"] != DONE:
        raise WorkError(
            f"{spec.run_id} {row['status']}: its loss is not finite; lower the learning rate with "
            "--set"
        )
    return dict(json_ready(row))


def read_parent(run: Path, ledger: str | None = None) -> Parent:
    """Read a finished run from its folder and the ledger of its sweep.

    Raises
    ------
    InputError
        The folder is not that of a finished run of a sweep.
    """
    place = run.absolute()
    folder = Folder(place.parent.parent)
    if place.parent.name != "runs" or not (place / WEIGHTS).exists():
        raise InputError(
            f"`RUN` must be the folder of a finished run, SWEEP/runs/RUN_ID with a {WEIGHTS}, but "
            f"got {run}; train it with shapelaw train or shapelaw sweep run"
        )
    book = existing_ledger(folder.path, ledger)
    rows = [row for entry in book.entries() for row in entry.rows]
    row = next((row for row in rows if row["run_id"] == place.name), None)
    if row is None or row["status"] != DONE:
        raise InputError(
            f"`RUN` must be a finished run of the ledger of {folder.path}, but it has no row of "
            f"{shown(place.name)}; shapelaw sweep status lists the runs"
        )
    spec = book.specs()[str(row["run_group"])]
    return Parent(folder=folder, row=row, spec=spec, model=load_export(place))


def plan_conversion(parent: Parent, request: ConversionRequest) -> RunSpec:
    """Plan the run of a conversion.

    Raises
    ------
    InputError
        The parent has another objective than the conversion needs, or a setting is impossible.
    """
    given = read_pairs(request.settings)
    if "objective" in given:
        raise InputError(
            f"`objective` of a conversion must be given by --to, but got --set objective="
            f"{given['objective']}; leave it out"
        )
    changes = {**(D2F_RECIPE if request.is_d2f else {}), **given}
    recipe = replace(parent.spec.recipe, **parse_settings(changes))
    length = recipe.context_length
    block = request.block(length)
    _check_objective(parent, request)
    if request.is_d2f or request.direct:
        phases: tuple[Phase, ...] = (Phase(block=block, share=1.0),)
    else:
        phases = plan_phases(block, length, **_given(request, PHASE_SETTINGS))
    conversion = Conversion(
        parent=parent.run_id,
        weights=sha256(parent.folder.run(parent.run_id) / WEIGHTS),
        parent_tokens=int(str(parent.row["tokens"])),
        phases=phases,
        method=D2F if request.is_d2f else "diffusion",
        **_given(request, ("average", "mask_noise", "rank")),
    )
    tokens = parse_count(request.tokens)
    if request.is_d2f:
        add_adapters(parent.model, LoraSettings(rank=conversion.rank), request.seed)
    variant = f"/{D2F}" if request.is_d2f else ""
    recipe = replace(recipe, objective=objective_name(block, length) + variant)
    trained = parent.model  # as it was exported, without modules that only serve training
    shape = model_for(recipe, getattr(trained, "shape", trained.architecture))
    if request.shift:
        config = architecture_config(architecture_of(shape), max_position_embeddings=length)
        shape = read_architecture(config | {"shift_predictions": True})
    passes = training_passes(recipe.objective, length, conversion)
    engine = fastest_execution(shape, recipe, steps=recipe.steps(tokens), passes=passes)
    return RunSpec(
        run_id=_name(parent.run_id, request, recipe, conversion, tokens),
        shape=shape,
        tokens=tokens,
        recipe=recipe,
        seed=request.seed,
        data_seed=parent.spec.data_seed + 1 + request.seed,
        role=ROLE,
        engine=Execution(attention=engine.attention),
        conversion=conversion,
    )


def _given(request: ConversionRequest, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(request, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _check_objective(parent: Parent, request: ConversionRequest) -> None:
    """Refuse a parent that was trained with another objective than its conversion begins with."""
    objective = parent.spec.recipe.objective
    if request.is_d2f and objective == NEXT_TOKEN:
        raise InputError(
            f"`--to {request.to}` needs a run of masked diffusion, but {parent.run_id} was trained "
            "on next_token; convert it --to diffusion first"
        )
    if parent.model.architecture.embedding.shifted:
        raise InputError(
            f"`--to {request.to}` needs a model that predicts the token at each position, but "
            f"{parent.run_id} was converted with --shift; convert its parent without"
        )
    if not request.is_d2f and objective != NEXT_TOKEN:
        raise InputError(
            f"`--to {request.to}` needs an autoregressive run, but {parent.run_id} was trained on "
            f"{objective}; give a run of next_token, or --to d2f"
        )


def _name(
    parent: str, request: ConversionRequest, recipe: Recipe, conversion: Conversion, tokens: int
) -> str:
    """Name a conversion by its parent, target, tokens and seed, and a digest of its settings."""
    settings = json.dumps([asdict(recipe), asdict(conversion)])
    digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
    direct = "-direct" * request.direct + "-shift" * request.shift
    name = f"{request.to.replace(':', '')}{direct}-{digest}-t{tokens}-s{request.seed}"
    return f"{parent[: MAX_RUN_ID - len(name) - 1]}-{name}"
