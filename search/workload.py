"""Serving workloads: prompt and output length, concurrency, number formats and service level."""

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import number_format

DTYPES = {"float32": 4, "bfloat16": 2}  # number formats of weights: bytes per value
KV_DTYPES = {**DTYPES, "fp8": 1, "int8": 1}  # of a KV cache; its few scales are neglected
DEFAULT_CONCURRENCY = 8
LIMITS = ("max_ttft", "max_tpot")
MAX_COUNT = 10**9  # tokens or sequences: sums of costs stay within 64 bits
# Fields of a TOML file by name: Python type, and its description for errors.
FIELD_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("preset", "name"), (str, "a text")),
    **dict.fromkeys(("input_tokens", "output_tokens", "concurrency"), (int, "a whole number")),
    **dict.fromkeys(("dtype", "kv_dtype"), (str, "a text")),
    **dict.fromkeys(LIMITS, ((int, float), "a number of seconds")),
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A static batch of sequences with one prompt length and one output length.

    Attributes
    ----------
    input_tokens, output_tokens
        Prompt tokens of each sequence, and tokens generated for each.
    concurrency
        Sequences served at once.
    dtype
        Number format of weights and arithmetic; ``bf16`` and ``fp32`` are short forms.
    kv_dtype
        Number format of the KV cache; None: as ``dtype``.
    max_ttft, max_tpot
        Service level: upper limits in seconds of the time to the first token and of the time per
        output token after it; None: no limit. A limit judges a measurement and never changes one.

    Raises
    ------
    InputError
        A length or a limit is out of range, or a number format is unknown.
    """

    name: str
    input_tokens: int
    output_tokens: int
    concurrency: int = DEFAULT_CONCURRENCY
    dtype: str = "float32"
    kv_dtype: str | None = None
    max_ttft: float | None = None
    max_tpot: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", number_format(self.dtype))
        if self.kv_dtype is not None:
            object.__setattr__(self, "kv_dtype", number_format(self.kv_dtype))
        if min(self.input_tokens, self.concurrency) < 1 or self.output_tokens < 2:
            raise InputError(
                "`input_tokens >= 1`, `output_tokens >= 2` and `concurrency >= 1` must hold, but "
                f"got {self.input_tokens}, {self.output_tokens} and {self.concurrency}"
            )
        if max(self.input_tokens, self.output_tokens, self.concurrency) > MAX_COUNT:
            raise InputError(
                f"lengths and `concurrency` must be at most {MAX_COUNT}, but got {self}"
            )
        if self.dtype not in DTYPES:
            raise InputError(f"`dtype` must be one of {', '.join(DTYPES)}, but got {self.dtype!r}")
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            raise InputError(
                f"`kv_dtype` must be one of {', '.join(KV_DTYPES)}, but got {self.kv_dtype!r}"
            )
        for name in LIMITS:
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < float("inf"):
                raise InputError(f"`{name} > 0` (seconds) must hold, but got {limit!r}")

    @property
    def bytes_per_value(self) -> int:
        """Return the bytes of one weight."""
        return DTYPES[self.dtype]

    @property
    def kv_bytes_per_value(self) -> int:
        """Return the bytes of one value in the KV cache."""
        return KV_DTYPES[self.kv_dtype or self.dtype]

    @property
    def served(self) -> str:
        """Return the fields that decide the speed as text: ``4096/1024@8:bfloat16,kv=fp8``.

        Name and limits are left out. Two workloads with the same text are served alike, so the
        text is part of the key of a stored measurement. :func:`parse_workload` reads it.
        """
        cache = "" if self.kv_dtype in (None, self.dtype) else f",kv={self.kv_dtype}"
        lengths = f"{self.input_tokens}/{self.output_tokens}"
        return f"{lengths}@{self.concurrency}:{self.dtype}{cache}"

    def output_rate(self, ttft: Any, tpot: Any) -> Any:
        """Compute output tokens/s of one static batch, prefill included.

        Parameters
        ----------
        ttft, tpot
            Seconds to the first token and per output token after it; numbers or arrays.
        """
        return self.concurrency * self.output_tokens / (ttft + tpot * (self.output_tokens - 1))

    def shortened(self, outputs: int) -> "Workload":
        """Return the workload with at most ``outputs`` generated tokens, which costs less.

        Cutting the output from 1024 to 128 tokens kept 96.6 % of the ranking's accuracy at 2.7
        times less cost (arXiv 2508.10251); the leaders are measured again at full length.
        """
        if outputs >= self.output_tokens:
            return self
        return replace(self, name=f"{self.name} (short)", output_tokens=outputs)

    def changed(self, **values: Any) -> "Workload":
        """Return the workload with other values; a None leaves its field unchanged."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def __str__(self) -> str:
        cache = "" if self.kv_dtype is None else f", KV cache {self.kv_dtype}"
        limits = [
            f", {name[4:].upper()} at most {getattr(self, name):g} s"
            for name in LIMITS
            if getattr(self, name) is not None
        ]
        return (
            f"{self.name}: {self.input_tokens} tokens in, {self.output_tokens} out, "
            f"{self.concurrency} at once, {self.dtype}{cache}{''.join(limits)}"
        )


PRESETS = {
    "chat": Workload(name="chat", input_tokens=512, output_tokens=256),
    "balanced": Workload(name="balanced", input_tokens=1024, output_tokens=1024),
    "rag": Workload(name="rag", input_tokens=4096, output_tokens=1024),  # arXiv 2510.18245
    "reasoning": Workload(name="reasoning", input_tokens=1024, output_tokens=4096),
    "edge": Workload(name="edge", input_tokens=256, output_tokens=64, concurrency=1),
    # With 64 sequences, arithmetic and memory decide the speed of tiny models, not call overhead.
    "proxy": Workload(name="proxy", input_tokens=128, output_tokens=64, concurrency=64),
}
PATTERN = re.compile(
    r"(?:(\d{1,12})/(\d{1,12})|(\w+))(?:@(\d{1,12}))?(?::(\w+))?((?:,\w+=[\w.]+)*)"
)
SHORT_NAMES = {"kv": "kv_dtype", "ttft": "max_ttft", "tpot": "max_tpot"}
UNITS = {"s": 1.0, "ms": 1e-3, "": 1.0}


def parse_workload(text: str | Path) -> Workload:
    """Read a preset (``chat``), lengths (``512/256``) or a TOML file (``mine.toml``).

    A preset or lengths may be followed by ``@CONCURRENCY``, ``:DTYPE`` and any of ``,kv=DTYPE``,
    ``,ttft=SECONDS`` and ``,tpot=SECONDS`` (or ``50ms``). A file holds the fields of
    :class:`Workload` by name, and may name a ``preset`` whose fields it changes.

    Raises
    ------
    InputError
        The text is neither a preset nor of the form above, or the file cannot be read, names an
        unknown field or holds a value of the wrong type.

    Examples
    --------
    >>> print(parse_workload("512/256@16:bf16"))
    512/256: 512 tokens in, 256 out, 16 at once, bfloat16
    >>> print(parse_workload("rag@32:bfloat16,kv=fp8,ttft=0.45,tpot=40ms"))
    rag: 4096 tokens in, 1024 out, 32 at once, bfloat16, KV cache fp8, TTFT at most 0.45 s, \
TPOT at most 0.04 s
    """
    if isinstance(text, Path) or text.strip().endswith(".toml"):
        return _read_file(Path(str(text).strip()))
    match = PATTERN.fullmatch(text.strip())
    if match is None or (match[3] and match[3] not in PRESETS):
        raise InputError(
            f"`--workload` must be one of {', '.join(PRESETS)}, or INPUT/OUTPUT[@CONCURRENCY]"
            f"[:DTYPE][,kv=DTYPE][,ttft=SECONDS][,tpot=SECONDS], or a .toml file, but got "
            f"{text!r}; write for example 1024/256@16"
        )
    inputs, outputs, preset, concurrency, dtype, options = match.groups()
    values = {
        "concurrency": None if concurrency is None else int(concurrency),
        "dtype": dtype,
        **_parse_options(options, text),
    }
    if preset:
        return PRESETS[preset].changed(**values)
    lengths = f"{inputs}/{outputs}"
    workload = Workload(name=lengths, input_tokens=int(inputs), output_tokens=int(outputs))
    return workload.changed(**values)


def _parse_options(text: str, whole: str) -> dict[str, Any]:
    """Parse the fields of ``,kv=fp8,ttft=0.5``."""
    values: dict[str, Any] = {}
    for part in text.split(",")[1:]:
        key, _, value = part.partition("=")
        name = SHORT_NAMES.get(key)
        if name is None or name in values:
            raise InputError(
                f"options of `--workload` must be {', '.join(SHORT_NAMES)}, each at most once, "
                f"but got {key!r} in {whole!r}"
            )
        values[name] = _parse_seconds(key, value) if name in LIMITS else value
    return values


def _parse_seconds(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(s|ms|)", text)
    if match is None:
        raise InputError(f"`{name}` must be seconds such as 0.05 or 50ms, but got {text!r}")
    return float(match[1]) * UNITS[match[2]]


def _read_file(path: Path) -> Workload:
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not TOML, not UTF-8, or an impossible path
        raise InputError(f"{str(path)!r} is not a TOML file ({error})") from None
    for name, value in fields.items():
        _check_kind(path, name, value)
    preset = fields.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise InputError(
            f"`preset` in {path} must be one of {', '.join(PRESETS)}, but got {preset!r}"
        )
    if preset is not None:
        return PRESETS[preset].changed(name=path.stem).changed(**fields)
    missing = [name for name in ("input_tokens", "output_tokens") if name not in fields]
    if missing:
        raise InputError(f"{path} lacks `{'` and `'.join(missing)}`; add them or a `preset`")
    return Workload(**{"name": path.stem, **fields})


def _check_kind(path: Path, name: str, value: object) -> None:
    if name not in FIELD_KINDS:
        raise InputError(
            f"{path} has the unknown field {name!r}; a workload has {', '.join(FIELD_KINDS)}"
        )
    kind, description = FIELD_KINDS[name]
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InputError(f"`{name}` in {path} must be {description}, but got {value!r}")
