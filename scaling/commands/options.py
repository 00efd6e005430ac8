"""Options that several commands share, each with one spelling and one help text."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import require_file_place, require_folder_place

TABLE_ENDINGS = (".csv", ".parquet")
MOST = 100_000  # starts, resamples, runs or shapes that one command may be asked for


def output_file(*endings: str) -> Callable[[typer.CallbackParam, Path | None], Path | None]:
    """Make the check of an option for a file to write; it runs before the command works.

    Parameters
    ----------
    endings
        Endings that the file may have; any without arguments.

    Returns
    -------
    Callback of the option, which raises an InputError for another ending or a place where no file
    can be written.
    """

    def check(param: typer.CallbackParam, path: Path | None) -> Path | None:
        if path is None:
            return None
        if endings and path.suffix.lower() not in endings:
            raise InputError(
                f"`{param.opts[0]}` must end in {' or '.join(endings)}, but got {path}; rename it"
            )
        require_file_place(path, param.opts[0])
        return path

    return check


def output_folder(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse an option's folder that cannot be made or filled, before the command works."""
    if path is not None:
        require_folder_place(path, param.opts[0])
    return path


def refuse_together(given: Mapping[str, object]) -> None:
    """Refuse options that exclude each other.

    Parameters
    ----------
    given
        Value of each option by its name; those of a false value are not given.

    Raises
    ------
    InputError
        More than one is given.
    """
    names = [name for name, value in given.items() if value]
    if len(names) > 1:
        raise InputError(
            f"only one of `{'`, `'.join(given)}` can be given, but got {' and '.join(names)}; "
            "leave one out"
        )


Runs = Annotated[
    str,
    typer.Argument(
        help="Run table: a CSV, JSON or Parquet file, or a name that `shapelaw data list` prints.",
        metavar="RUNS",
    ),
]
FitFile = Annotated[
    Path, typer.Argument(help="Fit, a JSON file that `shapelaw fit --out` wrote.", metavar="FIT")
]
ConfigFile = Annotated[
    Path, typer.Argument(help="Shape, a Hugging Face config.json.", metavar="CONFIG")
]
ConfigOrName = Annotated[
    Path,
    typer.Argument(
        help="Model: a Hugging Face config.json, or a name such as dhara-70m or llama-3.2-1b.",
        metavar="CONFIG",
    ),
]
LawOption = Annotated[
    str | None,
    typer.Option(
        "--law",
        help="Law: a name that `shapelaw laws` prints, or an expression such as "
        "\"Chinchilla() * UShape('mlp_to_attention')\" (default: conditional; chinchilla for a "
        "table without shapes).",
        metavar="LAW",
    ),
]
PriorOption = Annotated[
    str | None,
    typer.Option(
        "--prior",
        help="Prior: weak, pooled (the shipped pooled law), the file of a fit, or none (default: "
        "weak, and none with --delta or --objective).",
        metavar="NAME",
    ),
]
Size = Annotated[
    str,
    typer.Option(
        help="Parameters that N counts: non-embedding, total, active or active-non-embedding; "
        "auto: the first of these that the table has.",
        metavar="NAME",
    ),
]
Delta = Annotated[
    str,
    typer.Option(
        help="Huber threshold on ln loss, such as 1e-3; auto chooses it from the residuals.",
        metavar="NUMBER",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Seed = Annotated[
    int, typer.Option(help="Seed of all random numbers.", min=0, max=2**63 - 1, metavar="N")
]  # fmt: skip
Where = Annotated[
    list[str] | None,
    typer.Option(
        help='Keep rows where EXPR holds, such as "tokens >= 1e6 and gqa in (1, 2)"; repeatable.',
        metavar="EXPR",
    ),
]
ShapesWhere = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        help='Keep shapes where EXPR holds, such as "gqa <= 8 and kv_bytes <= 32768"; repeatable.',
        metavar="EXPR",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Omit the run with this run_id; repeatable.", metavar="RUN_ID"),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="Columns of a foreign table: OLD=NEW renames, NEW=EXPRESSION derives (such as "
        "tokens=flops/(6*N)), OLD= ignores; separated by commas (default: none).",
        metavar="LIST",
    ),
]
LossUnit = Annotated[
    str | None,
    typer.Option(
        "--loss-unit",
        help="Unit of the losses: nats or bits (per token), bits per byte, bits per character, or "
        "perplexity (default: the column loss_unit, else nats).",
        metavar="UNIT",
    ),
]
DropFailed = Annotated[
    bool,
    typer.Option("--drop-failed", help="Omit runs that did not finish or have no finite loss."),
]
Cutoffs = Annotated[
    list[float] | None,
    typer.Option(
        "--cutoff",
        help="Fit the runs below this value; repeatable (default: four cut-offs from the table).",
        metavar="NUMBER",
    ),
]
LeaveOutBy = Annotated[
    str,
    typer.Option(
        "--by",
        help="Quantity by which the largest runs are held out: size, compute or tokens.",
        metavar="NAME",
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(
        help="Training tokens of every row, such as 2M or 100B (default: the column `tokens`).",
        metavar="TOKENS",
    ),
]
Extrapolate = Annotated[
    bool,
    typer.Option(
        "--extrapolate",
        help="Predict also where the runs do not reach: beyond 1.5 decades of N or D, or half the "
        "range of a ratio.",
    ),
]
Params = Annotated[str, typer.Option(help="Parameter budget, such as 350M or 1B.", metavar="N")]
Family = Annotated[
    str | None,
    typer.Option(
        "--family",
        help="Search the axes of a family at equal active N, as qwen3_moe (default: dense shapes).",
        metavar="NAME",
    ),
]
AxisValues = Annotated[
    list[str] | None,
    typer.Option(
        "--axis",
        help="Values of a config field, as n_routed_experts=64,128; repeatable (default: usual).",
        metavar="FIELD=LIST",
    ),
]
Convention = Annotated[
    str,
    typer.Option(
        "--params-convention",
        help="Parameters that --params counts: non-embedding, total or active.",
        metavar="NAME",
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(help="Fraction by which N of a shape may differ from --params.", metavar="SHARE"),
]
Layers = Annotated[
    str,
    typer.Option(
        "--layers",
        help="Numbers of layers: 12,16,24, or 8:32, or 8:32:4; auto: near the usual depth.",
        metavar="LIST",
    ),
]
HeadDims = Annotated[
    str,
    typer.Option(
        "--head-dim",
        help="Head dimensions: 64,128, or 32:128:32; auto: the usual one for the size.",
        metavar="LIST",
    ),
]
CorpusOption = Annotated[
    str,
    typer.Option(
        help="Text: a file or folder, stdlib (Python's own source), hf:NAME, or "
        "NAME=PATH:WEIGHT,... for a mixture.",
        metavar="CORPUS",
    ),
]
Vocabulary = Annotated[
    int | None,
    typer.Option(
        "--vocab",
        help="Tokens of a byte-level BPE to train (default: the 256 bytes, without training one).",
        metavar="N",
    ),
]
ValidationOption = Annotated[
    str | None,
    typer.Option(
        "--validation",
        help="Held-out text as NAME=PATH,... (default: a tenth of every source).",
        metavar="NAME=PATH",
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="A tokenizer.json to use instead of --vocab (default: none).",
        metavar="FILE",
    ),
]
CorpusTokens = Annotated[
    str | None,
    typer.Option(
        help="Most training tokens to prepare, such as 100M (default: all; hf: needs a number).",
        metavar="TOKENS",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Worker processes, one core each (default: one per core).", min=1, metavar="N"
    ),
]
OutFolder = Annotated[
    Path,
    typer.Option(
        "--out",
        help="Folder for all files that are written.",
        metavar="FOLDER",
        callback=output_folder,
    ),
]
OutTable = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Write the table to this .csv or .parquet file (default: only print it).",
        metavar="FILE",
        callback=output_file(*TABLE_ENDINGS),
    ),
]
RecipeSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a field of the recipe, such as decay=0.2; repeatable.",
        metavar="NAME=VALUE",
    ),
]  # fmt: skip
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget-flops",
        help="Most training FLOPs of all runs together, such as 1e15 (default: no limit).",
        metavar="FLOPS",
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="Throughput engine: torch, transformers, vllm, llamacpp (measured here), "
        "aiconfigurator:GPU or roofline:GPU (predicted).",
        metavar="NAME[:HARDWARE]",
    ),
]
WorkloadOption = Annotated[
    str,
    typer.Option(
        help="Serving workload: chat, balanced, rag, reasoning, edge, proxy, or IN/OUT tokens, "
        "then @CONCURRENCY:DTYPE,kv=DTYPE,ttft=SECONDS,tpot=SECONDS; or a .toml file.",
        metavar="WORKLOAD",
    ),
]
DecoderOption = Annotated[
    str | None,
    typer.Option(
        "--decoder",
        help="Decoder of --engine torch: ar, or of diffusion models llada, threshold, block or "
        "d2f, as d2f:block=32,confidence=0.9,add=0.1 (default: ar).",
        metavar="NAME[:OPTIONS]",
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Measure again instead of using stored measurements.")
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Neither read nor store measurements.")
]  # fmt: skip


def all_of(conditions: list[str] | None) -> str | None:
    """Join the conditions of several ``--where`` options into one.

    Parameters
    ----------
    conditions
        One condition per option; None or empty without the option.

    Returns
    -------
    str or None
        Condition that holds if all conditions hold; None if there are none.

    Examples
    --------
    >>> all_of(["gqa == 1", "tokens > 1e6"]), all_of(["gqa == 1"]), all_of(None)
    ('(gqa == 1) and (tokens > 1e6)', 'gqa == 1', None)
    """
    if not conditions or len(conditions) == 1:
        return conditions[0] if conditions else None
    return " and ".join(f"({condition})" for condition in conditions)
