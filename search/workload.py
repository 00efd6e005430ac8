"""What is served: prompt and output length, how many sequences at once, number format."""

import re
from dataclasses import dataclass

from scaling.errors import InputError

DTYPES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """``concurrency`` sequences of ``input_tokens`` each, ``output_tokens`` generated for each."""

    name: str
    input_tokens: int
    output_tokens: int
    concurrency: int = 8
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.input_tokens, self.concurrency) < 1 or self.output_tokens < 2:
            raise InputError(
                "`input_tokens >= 1`, `output_tokens >= 2` and `concurrency >= 1` must hold, but "
                f"got {self.input_tokens}, {self.output_tokens} and {self.concurrency}"
            )
        if self.dtype not in DTYPES:
            raise InputError(f"`dtype` must be one of {', '.join(DTYPES)}, but got {self.dtype!r}")

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.input_tokens} tokens in, {self.output_tokens} out, "
            f"{self.concurrency} at once, {self.dtype}"
        )


PRESETS = {
    "chat": Workload(name="chat", input_tokens=512, output_tokens=256),
    "balanced": Workload(name="balanced", input_tokens=1024, output_tokens=1024),
    "rag": Workload(name="rag", input_tokens=4096, output_tokens=1024),  # arXiv 2510.18245
    "reasoning": Workload(name="reasoning", input_tokens=1024, output_tokens=4096),
    "edge": Workload(name="edge", input_tokens=256, output_tokens=64, concurrency=1),
    # Enough sequences that arithmetic and memory, not calls, decide the speed of tiny models.
    "proxy": Workload(name="proxy", input_tokens=128, output_tokens=64, concurrency=64),
}
PATTERN = re.compile(r"(\d+)/(\d+)(?:@(\d+))?(?::(\w+))?|(\w+)(?:@(\d+))?(?::(\w+))?")


def parse_workload(text: str) -> Workload:
    """Read ``chat``, ``chat@32``, ``512/256``, ``512/256@16`` or ``512/256@16:bfloat16``.

    Raises
    ------
    InputError
        The text is neither a preset nor of that form.

    Examples
    --------
    >>> print(parse_workload("512/256@16:bfloat16"))
    512/256: 512 tokens in, 256 out, 16 at once, bfloat16
    """
    match = PATTERN.fullmatch(text.strip())
    if match is not None and match[1]:
        return Workload(
            name=f"{match[1]}/{match[2]}",
            input_tokens=int(match[1]),
            output_tokens=int(match[2]),
            concurrency=int(match[3] or 8),
            dtype=match[4] or "float32",
        )
    if match is not None and match[5] in PRESETS:
        preset = PRESETS[match[5]]
        return Workload(
            name=preset.name,
            input_tokens=preset.input_tokens,
            output_tokens=preset.output_tokens,
            concurrency=int(match[6] or preset.concurrency),
            dtype=match[7] or preset.dtype,
        )
    raise InputError(
        f"`--workload` must be one of {', '.join(PRESETS)}, or INPUT/OUTPUT[@CONCURRENCY], "
        f"but got {text!r}; write for example 1024/256@16"
    )
