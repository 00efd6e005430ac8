"""Serving workloads: prompt and output length, concurrency, number formats and service level."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_toml
from shapelaw.scaling.units import number_format

DTYPES = {"float32": 4, "bfloat16": 2}  # number formats of weights: bytes per value
KV_DTYPES = {**DTYPES, "fp8": 1, "int8": 1}  # of a KV cache; its few scales are neglected
DEFAULT_CONCURRENCY = 8
WEIGHT_DTYPES = {**KV_DTYPES, "int4": 0.5}  # of stored weights; scales are neglected
BATCH, STEADY, AUTO = "batch", "steady", "auto"
LIMITS = ("max_ttft", "max_tpot")
MAX_GPUS = 1024  # that one model is split over
MAX_COUNT = 10**9  # tokens or sequences: sums of costs stay within 64 bits
# Fields of a TOML file by name: Python type, and its description for errors.
FIELD_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("preset", "name"), (str, "a text")),
    **dict.fromkeys(("input_tokens", "output_tokens", "concurrency"), (int, "a whole number")),
    **dict.fromkeys(("dtype", "kv_dtype", "weights", "prompts"), (str, "a text")),
    "automatic": (bool, "true or false"),
    "tensor_parallel": ((int, list), "a whole number or a list of them"),
    "price": ((int, float), "a number"),
    **dict.fromkeys(LIMITS, ((int, float), "a number of seconds")),
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Sequences with one prompt length and one output length, served together.

    Attributes
    ----------
    input_tokens, output_tokens
        Prompt tokens of each sequence, and tokens generated for each.
    concurrency
        Sequences served at once.
    dtype
        Number format of weights and arithmetic; ``bf16`` and ``fp32`` are short forms.
    weights
        Number format of the stored weights: also ``fp8``, ``int8`` and ``int4``; None: as
        ``dtype``, in which the arithmetic stays.
    kv_dtype
        Number format of the KV cache; None: as ``dtype``.
    max_ttft, max_tpot
        Service level: upper limits in seconds of the time to the first token and of the time per
        output token after it; None: no limit. A limit judges a measurement and never changes one,
        except that it bounds an automatic concurrency.
    automatic
        Whether the concurrency is the one with the highest throughput per GPU within the service
        level and the memory, found for each shape.
    tensor_parallel
        GPUs that one model is split over; of several numbers, the one with the highest throughput
        per GPU is taken for each shape.
    prompts
        ``batch``: all prompts are one static batch. ``steady``: requests arrive one by one while
        others decode, so that TTFT is the time of one prompt. None: ``steady`` if the concurrency
        is automatic and the engine has it, otherwise ``batch``.
    price
        Price of one GPU for an hour; None: no costs are computed.

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
    weights: str | None = None
    automatic: bool = False
    tensor_parallel: tuple[int, ...] = (1,)
    prompts: str | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        for name in ("dtype", "kv_dtype", "weights"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, number_format(value))
        split: Any = self.tensor_parallel
        object.__setattr__(
            self, "tensor_parallel", (split,) if isinstance(split, int) else tuple(split)
        )
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
        for name in (*LIMITS, "price"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < float("inf"):
                unit = "per GPU and hour" if name == "price" else "seconds"
                raise InputError(f"`{name} > 0` ({unit}) must hold, but got {limit!r}")
        self._check_serving()

    def _check_serving(self) -> None:
        if self.weights is not None and self.weights not in WEIGHT_DTYPES:
            raise InputError(
                f"`weights` must be one of {', '.join(WEIGHT_DTYPES)}, but got {self.weights!r}"
            )
        if self.prompts not in (None, BATCH, STEADY):
            raise InputError(f"`prompts` must be batch or steady, but got {self.prompts!r}")
        split = self.tensor_parallel
        valid = all(isinstance(n, int) and 1 <= n <= MAX_GPUS for n in split)
        if not split or not valid or len(set(split)) < len(split):
            raise InputError(
                f"`tensor_parallel` must be different whole numbers from 1 to {MAX_GPUS}, "
                f"but got {', '.join(map(str, split)) or 'none'}"
            )

    @property
    def bytes_per_value(self) -> float:
        """Return the bytes of one weight."""
        return WEIGHT_DTYPES[self.weights or self.dtype]

    @property
    def steady(self) -> bool:
        """Return whether requests arrive one by one, and not as one static batch."""
        return self.prompts == STEADY or (self.prompts is None and self.automatic)

    @property
    def gpus(self) -> int:
        """Return the GPUs that one model is split over, the fewest of several numbers."""
        return min(self.tensor_parallel)

    @property
    def needs(self) -> dict[str, str]:
        """Return what an engine has to support beyond a batch on one device, with the option."""
        wanted = {
            "weights": (self.weights not in (None, self.dtype), f"weights={self.weights}"),
            "tensor_parallel": (
                self.tensor_parallel != (1,), f"tp={'/'.join(map(str, self.tensor_parallel))}"
            ),
            "prompts": (self.steady, "prompts=steady"),
            "automatic": (self.automatic, "concurrency=auto"),
        }  # fmt: skip
        return {name: text for name, (asked, text) in wanted.items() if asked}

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
        more = "".join(f",{text}" for text in self.needs.values())
        if self.automatic and not self.steady:
            more += ",prompts=batch"
        return f"{lengths}@{self.concurrency}:{self.dtype}{cache}{more}"

    def output_rate(self, ttft: Any, tpot: Any) -> Any:
        """Compute output tokens/s of each GPU, prefill included.

        Parameters
        ----------
        ttft, tpot
            Seconds to the first token and per output token after it; numbers or arrays.
        """
        seconds = ttft + tpot * (self.output_tokens - 1)
        return self.concurrency * self.output_tokens / seconds / self.gpus

    def cost_per_million(self, rate: float) -> float | None:
        """Compute the price of a million output tokens at tokens/s of a GPU; None: no price.

        Examples
        --------
        >>> parse_workload("chat,price=3.6/h").cost_per_million(1000)
        1.0
        """
        return None if self.price is None else self.price / 3600 / rate * 1e6

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
        at_once = (
            "as many at once as the limits allow"
            if self.automatic
            else (f"{self.concurrency} at once")
        )
        weights = "" if self.weights in (None, self.dtype) else f", weights {self.weights}"
        split = self.tensor_parallel
        split_text = "" if split == (1,) else f", each model on {' or '.join(map(str, split))} GPUs"
        prompts = ", prompts one by one" if self.steady else ""
        price = "" if self.price is None else f", {self.price:g} per GPU and hour"
        return (
            f"{self.name}: {self.input_tokens} tokens in, {self.output_tokens} out, "
            f"{at_once}, {self.dtype}{weights}{cache}{split_text}{prompts}{''.join(limits)}{price}"
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
    r"(?:(\d{1,12})/(\d{1,12})|(\w+))(?:@(\d{1,12}))?(?::(\w+))?((?:,\w+=[\w./]+)*)"
)
SHORT_NAMES = {
    "kv": "kv_dtype", "ttft": "max_ttft", "tpot": "max_tpot", "weights": "weights",
    "tp": "tensor_parallel", "prompts": "prompts", "price": "price", "concurrency": "automatic",
}  # fmt: skip
UNITS = {"s": 1.0, "ms": 1e-3, "": 1.0}


def parse_workload(text: str | Path, *, dtype: str = "float32") -> Workload:
    """Read a preset (``chat``), lengths (``512/256``) or a TOML file (``mine.toml``).

    A preset or lengths may be followed by ``@CONCURRENCY``, ``:DTYPE`` and any of ``,kv=DTYPE``,
    ``,weights=DTYPE``, ``,ttft=SECONDS``, ``,tpot=SECONDS`` (or ``50ms``), ``,concurrency=auto``,
    ``,tp=2/4``, ``,prompts=steady`` and ``,price=2.5/h``. A file holds the fields of
    :class:`Workload` by name, and may name a ``preset`` whose fields it changes.

    Parameters
    ----------
    text
        The preset, the lengths or the path.
    dtype
        Number format where the text names none, such as an engine's ``default_dtype``.

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
        return _read_file(Path(str(text).strip()), dtype)
    match = PATTERN.fullmatch(text.strip())
    if match is None or (match[3] and match[3] not in PRESETS):
        raise InputError(
            f"`--workload` must be one of {', '.join(PRESETS)}, or INPUT/OUTPUT[@CONCURRENCY]"
            f"[:DTYPE][,kv=DTYPE][,ttft=SECONDS][,tpot=SECONDS][,concurrency=auto], or a .toml "
            f"file, but got {text!r}; write for example 1024/256@16"
        )
    inputs, outputs, preset, concurrency, named, options = match.groups()
    values = {
        "concurrency": None if concurrency is None else int(concurrency),
        "dtype": named or dtype,
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
        values[name] = OPTION_PARSERS.get(name, _as_text)(key, value)
    return values


def _parse_seconds(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(s|ms|)", text)
    if match is None:
        raise InputError(f"`{name}` must be seconds such as 0.05 or 50ms, but got {text!r}")
    return float(match[1]) * UNITS[match[2]]


def _as_text(_: str, text: str) -> str:
    return text


def _parse_automatic(name: str, text: str) -> bool:
    if text != AUTO:
        raise InputError(f"`{name}` must be auto, but got {text!r}; write a number as @{text}")
    return True


def _parse_gpus(name: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,4}(/\d{1,4})*", text):
        raise InputError(f"`{name}` must be numbers of GPUs such as 2 or 2/4/8, but got {text!r}")
    return tuple(map(int, text.split("/")))


def _parse_price(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d{1,9}\.?\d{0,9}|\.\d{1,9})(/h)?", text)
    if match is None:
        raise InputError(f"`{name}` must be that of a GPU for an hour, as 2.5/h, but got {text!r}")
    return float(match[1])


OPTION_PARSERS: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(LIMITS, _parse_seconds),
    "automatic": _parse_automatic,
    "tensor_parallel": _parse_gpus,
    "price": _parse_price,
}


def _read_file(path: Path, dtype: str) -> Workload:
    fields = read_toml(path)
    for name, value in fields.items():
        _check_kind(path, name, value)
    fields.setdefault("dtype", dtype)
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
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
        raise InputError(f"`{name}` in {path} must be {description}, but got {value!r}")
