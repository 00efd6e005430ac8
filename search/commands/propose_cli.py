"""The ``propose`` command: its options, the request that they make, and the printed proposals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from shapelaw.scaling.commands.options import (
    MOST,
    AxisValues,
    Convention,
    DecoderOption,
    EngineOption,
    Extrapolate,
    Family,
    Fresh,
    HeadDims,
    Json,
    Layers,
    NoCache,
    Seed,
    ShapesWhere,
    WorkloadOption,
    output_folder,
    refuse_together,
)
from shapelaw.scaling.errors import InputError


def _proposals_folder(param: typer.CallbackParam, out: Path | None) -> Path | None:
    """Refuse to write proposals into a file's place, or over those of a quickstart."""
    if out is not None and (out / "quickstart.json").exists():
        raise InputError(
            f"`--out` must not be the folder of a quickstart, but {out} is one: its proposals "
            "would be lost; choose another folder"
        )
    return output_folder(param, out)


def _storage_address(address: str | None) -> str | None:
    """Refuse the address of a storage that cannot be opened, before the command works."""
    from shapelaw.search.study.storage import check_storage_address

    if address is not None:
        check_storage_address(address)
    return address


if TYPE_CHECKING:
    from shapelaw.search.proposals.family_request import FamilyRequest
    from shapelaw.search.proposals.request import Budget, SearchEffort, Serving, SpaceOptions
    from shapelaw.search.proposals.target_loss import TargetLoss
    from shapelaw.search.proposals.training_time import TrainingTime

TrainingTokens = Annotated[
    str, typer.Option(help="Training tokens, such as 2M or 100B.", metavar="TOKENS")
]
SizeBudget = Annotated[
    str | None,
    typer.Option(
        "--params",
        help="Parameter budget, such as 350M or 1B (default: that of --target-loss).",
        metavar="N",
    ),
]
EqualTokens = Annotated[
    str | None,
    typer.Option(
        "--tokens",
        help="Training tokens, such as 100B (default: those of --train-hours).",
        metavar="TOKENS",
    ),
]
TrainHours = Annotated[
    float | None,
    typer.Option(
        help="Hours of training, in which faster shapes get more tokens (default: none).",
        metavar="HOURS",
    ),
]
TrainHardware = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        help="Devices of --train-hours as h100x8, names as in roofline:GPU (default: none).",
        metavar="NAME",
    ),
]
TargetLossOption = Annotated[
    float | None,
    typer.Option(
        "--target-loss",
        help="Loss to reach at the least cost, which gives --params and --tokens (default: none).",
        metavar="LOSS",
    ),
]
ServeTokens = Annotated[
    str | None,
    typer.Option(
        "--serve-tokens",
        help="Tokens of the model's life, whose serving --target-loss pays too (default: none).",
        metavar="TOKENS",
    ),
]
ModelUtilisation = Annotated[
    float | None,
    typer.Option(
        "--mfu",
        help="Share of the peak FLOP/s that training with --train-hours reaches (default: 0.4).",
        metavar="SHARE",
    ),
]
Law = Annotated[
    str | None,
    typer.Option(
        help="Fit that `shapelaw fit --out` wrote, or a published law such as "
        "paper-2510.18245 (default: a law fitted on the shipped runs).",
        metavar="LAW",
    ),
]
Baseline = Annotated[
    str,
    typer.Option(
        help="Model to beat: a published name or a config.json; of another size, its proportions.",
        metavar="NAME",
    ),
]
EqualSize = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        help="Fraction by which N may differ from the baseline's (default: 0.01; below 100M 0.02).",
        metavar="SHARE",
    ),
]
AnyShape = Annotated[
    bool, typer.Option("--any", help="Lift the rules for deployable shapes, which are printed.")
]
Confidence = Annotated[
    float,
    typer.Option(
        help="Probability of no more loss that the fast shape must have.", metavar="PROBABILITY"
    ),
]
TensorParallel = Annotated[
    str | None,
    typer.Option(
        "--tp",
        help="GPUs that a model is split over, as 2,4,8: each shape gets the best (default: 1).",
        metavar="N",
    ),
]
VocabularySize = Annotated[
    int | None, typer.Option(help="Vocabulary size (default: the baseline's).", metavar="N")
]
MaxTTFT = Annotated[
    float | None,
    typer.Option(
        help="Most seconds to the first output token (default: no limit).", metavar="SECONDS"
    ),
]
MaxTPOT = Annotated[
    float | None,
    typer.Option(
        help="Most seconds per output token after the first (default: no limit).",
        metavar="SECONDS",
    ),
]
Worse = Annotated[
    float,
    typer.Option(
        help="Per cent by which a predicted loss may exceed the baseline's.", metavar="PERCENT"
    ),
]
Link = Annotated[
    str | None,
    typer.Option(
        help="Link from loss to accuracy: olmo-ladder or a file (default: no accuracies).",
        metavar="LINK",
    ),
]
Validation = Annotated[
    str,
    typer.Option(
        help="Validation set that the law's losses are on, as the link names it (default: "
        "not said).",
        metavar="NAME",
    ),
]
Measurements = Annotated[
    int, typer.Option(help="Most shapes that the engine answers for.", min=2, max=MOST, metavar="N")
]
Estimates = Annotated[
    int,
    typer.Option(
        help="Most shapes that the time model answers for.", min=0, max=10**7, metavar="N"
    ),
]
Fastest = Annotated[
    bool,
    typer.Option("--fastest", help="Maximise throughput at no more loss than the baseline, only."),
]
Short = Annotated[
    int | None,
    typer.Option(
        help="Output tokens while searching; leaders get the full length (default: full).",
        min=2,
        metavar="TOKENS",
    ),
]
Sampler = Annotated[
    str, typer.Option(help="Sampler: calibrated, tpe, nsga2, gp or random.", metavar="NAME")
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Storage of the study that several searches share: postgresql://... or a file "
        "(default: none).",
        metavar="URL",
        callback=_storage_address,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for proposals, configs, pictures and report.html (default: only print).",
        metavar="FOLDER",
        callback=_proposals_folder,
    ),
]
Wide = Annotated[
    bool, typer.Option("--wide", help="Print every column, not only the five that fit 80 letters.")
]


def mount(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("propose")(propose_shapes)


def propose_shapes(
    params: SizeBudget = None,
    tokens: EqualTokens = None,
    train_hours: TrainHours = None,
    hardware: TrainHardware = None,
    mfu: ModelUtilisation = None,
    target_loss: TargetLossOption = None,
    serve_tokens: ServeTokens = None,
    law: Law = None,
    workload: WorkloadOption = "balanced",
    engine: EngineOption = "torch",
    decoder: DecoderOption = None,
    family: Family = None,
    axis: AxisValues = None,
    baseline: Baseline = "llama-3.2-1b",
    params_convention: Convention = "non-embedding",
    tolerance: EqualSize = None,
    any_shape: AnyShape = False,
    layers: Layers = "auto",
    head_dim: HeadDims = "auto",
    vocab: VocabularySize = None,
    where: ShapesWhere = None,
    tp: TensorParallel = None,
    max_ttft: MaxTTFT = None,
    max_tpot: MaxTPOT = None,
    worse: Worse = 2.0,
    confidence: Confidence = 0.8,
    extrapolate: Extrapolate = False,
    link: Link = None,
    validation: Validation = "",
    measurements: Measurements = 24,
    estimated: Estimates = 12,
    fastest: Fastest = False,
    short: Short = None,
    sampler: Sampler = "calibrated",
    storage: Storage = None,
    fresh: Fresh = False,
    no_cache: NoCache = False,
    out: Out = None,
    wide: Wide = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Rank the shapes of a budget by predicted loss and throughput."""
    from shapelaw.search.engines.cache import stored_engine
    from shapelaw.search.proposals import request as groups
    from shapelaw.search.workload import parse_workload

    serving = stored_engine(engine, keep=not no_cache, fresh=fresh, decoder=decoder)
    served = parse_workload(workload, dtype=serving.default_dtype).changed(
        max_ttft=max_ttft, max_tpot=max_tpot,
        tensor_parallel=None if tp is None else _parse_option("--tp", tp),
    )  # fmt: skip
    served = serving.served_workload(served)
    size = _size_of(
        params, tokens, target_loss, serve_tokens, _training_time(train_hours, hardware, mfu),
        convention=params_convention, tolerance=tolerance, extrapolate=extrapolate,
    )  # fmt: skip
    if family is None and axis:
        raise InputError("`--axis` belongs to --family, but got it without; add --family qwen3_moe")
    options = _RequestOptions(
        effort=groups.SearchEffort(
            measurements=measurements, estimated=estimated, short=short, sampler=sampler,
            storage=storage, seed=seed,
        ),
        space=groups.SpaceOptions(
            baseline=baseline, layers=_parse_option("--layers", layers),
            head_dims=_parse_option("--head-dim", head_dim), vocab_size=vocab,
            where=tuple(where or ()), worse_percent=worse, fastest=fastest,
            any_shape=any_shape, confidence=confidence,
            tensor_parallel=served.tensor_parallel,
        ),
        serving=groups.Serving(workload=served, engine=serving),
    )  # fmt: skip
    _search_and_print(
        size, options, law, link, validation, out, family=(family, axis or []), json=json, wide=wide
    )


class _RequestOptions(TypedDict):
    """The options of a request but its budget."""

    effort: "SearchEffort"
    space: "SpaceOptions"
    serving: "Serving"


def _search_and_print(
    size: "Budget | TargetLoss",
    options: _RequestOptions,
    law: str | None,
    link: str | None,
    validation: str,
    out: Path | None,
    *,
    family: "tuple[str | None, list[str]]" = (None, []),
    json: bool,
    wide: bool,
) -> None:
    """Load the law and its link, search the shapes, and print and write the proposals."""
    from shapelaw.scaling.display.console import note
    from shapelaw.scaling.display.progress import progress_shown
    from shapelaw.search.commands.output import print_proposals
    from shapelaw.search.proposals.basis import loss_basis, require_budget_in_reach
    from shapelaw.search.proposals.pareto_search import propose
    from shapelaw.search.proposals.request import Budget, ProposalRequest
    from shapelaw.search.proposals.target_loss import request_at_loss
    from shapelaw.search.reports.proposal_page import write_pages

    request: ProposalRequest
    if family[0] is not None:
        request = _family_request(size, family[0], family[1], options)
    elif isinstance(size, Budget):  # an invalid request is refused before a law is fitted
        request = ProposalRequest(budget=size, **options)
    with progress_shown(quiet=json):
        basis = loss_basis(law, seed=options["effort"].seed, link=link, validation=validation)
        if not isinstance(size, Budget):
            request = request_at_loss(size, basis, **options)
        far = require_budget_in_reach(basis, request.budget, request.tokens, request.baseline)
        proposals = propose(request, basis, out=out)
    page = None if out is None else write_pages(out)
    for text in far:
        note(f"note: {text}")
    print_proposals(proposals, page, json=json, wide=wide)


def _family_request(
    size: "Budget | TargetLoss", family: str, axes: list[str], options: _RequestOptions
) -> "FamilyRequest":
    """Make the request of a search among the models of a family."""
    from shapelaw.scaling.space.family_space import given_axes
    from shapelaw.search.proposals.family_request import FamilyRequest
    from shapelaw.search.proposals.request import Budget

    if not isinstance(size, Budget):
        raise InputError(
            "`--target-loss` must be left out with --family; give --params and --tokens, or "
            "search dense shapes"
        )
    return FamilyRequest(budget=size, family=family, axes=given_axes(family, axes), **options)


def _size_of(
    params: str | None,
    tokens: str | None,
    target_loss: float | None,
    serve_tokens: str | None,
    time: "TrainingTime | None",
    **options: Any,
) -> "Budget | TargetLoss":
    """Read the options of size and tokens, or of the target loss that stands for both."""
    from shapelaw.scaling.units import parse_count
    from shapelaw.search.proposals.request import Budget
    from shapelaw.search.proposals.target_loss import TargetLoss

    for name, value in (("--params", params), ("--tokens", tokens), ("--train-hours", time)):
        refuse_together({"--target-loss": target_loss is not None, name: value is not None})
    if target_loss is not None:
        del options["convention"]  # that of the law
        served = 0 if serve_tokens in (None, "0") else parse_count(serve_tokens)
        return TargetLoss(loss=target_loss, served_tokens=served, **options)
    if serve_tokens is not None:
        raise InputError(
            "`--serve-tokens` belongs to --target-loss, in place of --params and --tokens; "
            "add it, such as --target-loss 2.5"
        )
    if params is None:
        raise InputError(
            "`--params` or `--target-loss` must be given, but got none; write --params 1B"
        )
    return Budget(
        parameters=parse_count(params),
        tokens=None if tokens is None else parse_count(tokens),
        time=time,
        **options,
    )


def _training_time(
    hours: float | None, hardware: str | None, mfu: float | None
) -> "TrainingTime | None":
    """Read the options of a training time, which belong together; None without them."""
    from shapelaw.search.proposals.training_time import MFU, TrainingTime, parse_hardware

    if hours is None:
        for name, value in (("--hardware", hardware), ("--mfu", mfu)):
            if value is not None:
                raise InputError(
                    f"`{name}` belongs to --train-hours, but got {value} without it; add "
                    f"--train-hours 8, or leave {name} out"
                )
        return None
    if hardware is None:
        raise InputError("`--train-hours` needs --hardware; add it, such as --hardware h100x8")
    device, devices = parse_hardware(hardware)
    return TrainingTime(
        hours=hours, hardware=device, devices=devices, mfu=MFU if mfu is None else mfu
    )


def _parse_option(option: str, text: str) -> tuple[int, ...] | None:
    """Read a list of whole numbers; None for ``auto``."""
    from shapelaw.scaling.units import parse_numbers

    return None if text == "auto" else parse_numbers(option, text)
