"""Optional packages, with the extra of shapelaw that installs each package."""

from importlib.util import find_spec

from shapelaw.scaling.errors import InputError

# Extra -> its purpose and its packages; those that a command needs by their import names.
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("training, and measuring on this machine", ("torch", "tokenizers", "safetensors")),
    "hf": ("the engine transformers, streamed text", ("transformers", "datasets")),
    "eval": ("benchmarks through lm-eval", ("lm_eval", "accelerate", "peft")),
    "report": ("interactive report pages", ("plotly",)),
    "predict": ("the engine aiconfigurator", ("aiconfigurator",)),
    "llamacpp": ("the engine llamacpp, GGUF files", ("xllamacpp", "gguf")),
    "postgres": ("ledgers and studies in PostgreSQL", ("psycopg",)),
    "ray": ("the launcher ray", ("ray",)),
    "slurm": ("the launcher slurm", ("submitit",)),
    "trackers": ("TensorBoard, Weights & Biases", ("tensorboard", "wandb")),
    "dashboard": ("a live view of a study", ("optuna_dashboard",)),
    "test": ("the tests", ("hypothesis", "pytest", "pytest_xdist")),
    "slow": ("the slow tests", ("playwright",)),
    "docs": ("the documentation", ("furo", "latex2mathml", "myst_parser", "sphinx")),
    "dev": (
        "work on shapelaw itself",
        ("import_linter", "ipykernel", "mypy", "nbmake", "pandas_stubs", "ruff", "scipy_stubs"),
    ),
}
EXTRA_OF = {package: extra for extra, (_, packages) in EXTRAS.items() for package in packages}


def installing(package: str) -> str:
    """Return the command that installs an optional package.

    Examples
    --------
    >>> installing("torch")
    'pip install "shapelaw[train]"'
    """
    return f'pip install "shapelaw[{EXTRA_OF[package]}]"'


def missing_package(error: ImportError) -> InputError | None:
    """Convert a failed import to an error that names the extra; None without such an extra."""
    package = (error.name or "").partition(".")[0]
    return _missing(package) if package in EXTRA_OF else None


def require_extra(extra: str) -> None:
    """Refuse to start a command whose extra is not installed, before it writes anything.

    Raises
    ------
    InputError
        A package of the extra is missing.
    """
    for package in EXTRAS[extra][1]:
        if find_spec(package) is None:
            raise _missing(package)


def _missing(package: str) -> InputError:
    return InputError(f"the command needs the package {package}; `{installing(package)}`")


def extra_states() -> dict[str, dict[str, object]]:
    """Return the purpose of every extra by its name, its missing packages, and the way to them."""
    states: dict[str, dict[str, object]] = {}
    for extra, (purpose, packages) in EXTRAS.items():
        absent = [package for package in packages if installed_version(package) is None]
        command = f'pip install "shapelaw[{extra}]"' if absent else None
        states[extra] = {"for": purpose, "missing": absent, "install": command}
    return states


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None if the package is missing."""
    from importlib.metadata import PackageNotFoundError, version  # slow; `--help` needs none of it

    try:
        return version(package)
    except PackageNotFoundError:
        return None
