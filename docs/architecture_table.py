"""Table of families and of what tests show of each, from the results of these tests.

``python docs/architecture_table.py`` runs the tests and writes their results beside this file; the
site makes its table from them. Names of columns after it run the tests of these alone. Tests of
vLLM are skipped without ``SHAPELAW_VLLM_PYTHON``, and show nothing then.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree as ET

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.engine_conditions import (
    CONDITIONS,
    SERVING_ENGINES,
    broken_condition,
)
from shapelaw.scaling.architectures.registry import FAMILIES

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "architectures.json"
PARITY = "tests/trainers/models/test_parity.py"
DIFFUSION = "tests/trainers/models/test_diffusion_families.py"
CANON = "tests/trainers/models/test_canon.py"
CANON_TRAINING = "tests/trainers/training/test_canon.py"
COUNTS = "tests/scaling/architectures/"
STEPS = "tests/trainers/generation/test_step_decoder.py"
SERVED = "tests/search/engines/test_architectures_served.py"
SPACE = "tests/scaling/space/test_family_space.py"
PROPOSALS = "tests/search/proposals/test_family_proposals.py"
VLLM_FAMILIES = "tests/search/engines/test_vllm_families.py"
LLAMACPP_FAMILIES = "tests/search/engines/test_llamacpp_families.py"
TRAINING = "tests/trainers/training/test_families.py"
# Tests of each column: a file and the beginning of the names of its tests.
POINTS = {
    "counts": (
        (COUNTS + "test_architecture.py", "test_counts_of_a_published_config"),
        (COUNTS + "test_architecture.py", "test_kimi_k2_counts"),
        (COUNTS + "test_architecture.py", "test_lfm2_counts"),
        (COUNTS + "test_families.py", "test_partial_config_reads"),
        (COUNTS + "test_diffusion_families.py", "test_counts_of_a_named_architecture"),
        (PARITY, "test_parameters_are_the_counted_ones"),
        (CANON, "test_parameters_and_cache"),
        (CANON, "test_counts_of_a_published_config"),
    ),
    "logits, loss, gradients": (
        (PARITY, "test_logits_loss_and_gradients"),
        (DIFFUSION, "test_logits_equal_those_of_the_class"),
        (CANON, "test_logits_equal_those_of_loops"),
    ),
    "mistakes": ((PARITY, "test_mistake"), (CANON, "test_zero_taps")),
    "decoding": tuple((file, "test_prefill") for file in (PARITY, DIFFUSION, CANON)),
    "cache": (
        *((file, "test_cache_has_the_counted_bytes") for file in (PARITY, DIFFUSION)),
        (CANON, "test_parameters_and_cache"),
    ),
    "export": tuple((file, "test_export_loads") for file in (PARITY, DIFFUSION, CANON)),
    "training": ((TRAINING, "test_"), (CANON_TRAINING, "test_")),
    "serving": ((STEPS, "test_greedy_tokens"), (SERVED, "test_embedded_engine")),
    "transformers": (
        (SERVED, "test_transformers_engine"),
        (SERVED, "test_cache_of_the_transformers_engine"),
    ),
    "vllm": ((VLLM_FAMILIES, "test_vllm_gives"),),
    "llamacpp": (
        (LLAMACPP_FAMILIES, "test_llamacpp_gives"),
        (LLAMACPP_FAMILIES, "test_llamacpp_engine"),
    ),
    "search": (
        (SPACE, "test_enumerated_models"),
        (PROPOSALS, "test_candidates_of_a_family"),
    ),
}
REASONS = {
    "mistakes": "no wrong field or block was tried in these families",
    "training": "no training run of a model of LLaDA 2, Dream or Dhara is tested",
    "serving": "no measurement of these models is tested",
    "transformers": "kimi_k2 is written as a `deepseek_v3`; no class has Canon layers, and none of "
    "a diffusion model decodes",
    "vllm": "refused with the reason below; kimi_k2 is a `deepseek_v3`",
    "llamacpp": "refused with the reason below; kimi_k2 is a `deepseek_v3`",
    "search": "Canon layers are an axis of every family, tested in one; diffusion models are "
    "enumerated, but engines of proposals decode token by token",
}
ROWS = (*FAMILIES, "canon")


def write_results(points: Sequence[str] = ()) -> None:
    """Run the tests of columns and write how many of each row passed and failed.

    Parameters
    ----------
    points
        Columns; those that are not given keep their results. None: all.
    """
    unknown = set(points) - set(POINTS)
    if unknown:
        raise SystemExit(f"columns must be of {', '.join(POINTS)}, but got {', '.join(unknown)}")
    tested = list(points or POINTS)
    files = sorted({file for point in tested for file, _ in POINTS[point]})
    begins = sorted({begin for point in tested for _, begin in POINTS[point]})
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # vLLM and llama.cpp are slow to start.
        selected = ["-m", "slow or not slow", "-k", " or ".join(begins)]
        command = ["-m", "pytest", "-q", "-n", "0", *selected, f"--junitxml={report}"]
        subprocess.run([sys.executable, *command, *files], cwd=ROOT, check=False)
        cases = list(ET.parse(report).getroot().iter("testcase"))
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results = {
        row: {
            point: _results(cases, row, point) if point in tested else before[row][point]
            for point in POINTS
            if point in tested or point in before.get(row, {})
        }
        for row in ROWS
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _results(cases: list[ET.Element], row: str, point: str) -> dict[str, Any]:
    """Count the outcomes of the tests of one row and column, and name the tests."""
    outcome: dict[str, int] = defaultdict(int)
    names = set()
    for case in cases:
        file = str(case.get("classname")).replace(".", "/") + ".py"
        name = str(case.get("name")).partition("[")[0]
        wanted = any(file == each and name.startswith(begin) for each, begin in POINTS[point])
        if wanted and row == _row(file, str(case.get("name"))):
            state = "failed" if len(case) and case[0].tag in ("failure", "error") else "passed"
            outcome["skipped" if case.find("skipped") is not None else state] += 1
            names.add(f"{file}::{name}")
    return {"passed": outcome["passed"], "failed": outcome["failed"], "tests": sorted(names)}


def _row(file: str, name: str) -> str | None:
    """Return the row that a test belongs to, by its file, its parameters or its name."""
    if file in (CANON, CANON_TRAINING):
        return "canon"
    function, _, parameter = name.rstrip("]").partition("[")
    published = _published_models()
    if parameter in published:
        return published[parameter]
    tokens = re.split(r"[^A-Za-z0-9_]", parameter)
    return next((row for row in FAMILIES if row in tokens or f"test_{row}_" in function), None)


@cache
def _published_models() -> dict[str, str]:
    """Return the model type of each published model, by its name."""
    known = json.loads((ROOT / "tests/golden/architectures.json").read_text(encoding="utf-8"))
    named = json.loads((ROOT / "data/architectures.json").read_text(encoding="utf-8"))
    return {
        **{model["name"]: model["model_type"] for model in known},
        **{name: entry["config"]["model_type"] for name, entry in named.items()},
    }


def table() -> str:
    """Return the table as Markdown."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [f"| family | {' | '.join(POINTS)} |", "|---" * (len(POINTS) + 1) + "|"]
    for row in ROWS:
        cells = [_cell(results.get(row, {}).get(point)) for point in POINTS]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    reasons = [f"- **{point}**: {reason}." for point, reason in REASONS.items()]
    return "\n".join([*lines, "", "Reasons for the dashes, by column:", "", *reasons, ""])


def engine_table() -> str:
    """Return which engines serve each family with its default fields, and all conditions."""
    lines = [f"| family | {' | '.join(SERVING_ENGINES)} |", "|---" * 5 + "|"]
    for family, fields in FAMILIES.items():
        masked = {"mask_token_id": 0} if "mask_token_id" in fields.fields else {}
        architecture = read_architecture({"model_type": family, **masked})
        broken = [broken_condition(architecture, engine) for engine in SERVING_ENGINES]
        cells = ["✓" if each is None else f"`{each[0].rule}`" for each in broken]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    lines += ["", "The conditions:", "", "| engines | must hold | because |", "|---|---|---|"]
    for each in CONDITIONS:
        engines = ", ".join(f"`{name}`" for name in each.engines)
        lines.append(f"| {engines} | `{each.rule}` | {each.reason} |")
    return "\n".join([*lines, ""])


def _cell(result: dict[str, Any] | None) -> str:
    if result is None or not result["passed"] + result["failed"]:
        return "–"
    if result["failed"]:
        return f"{result['failed']} fail"
    return f"✓ {result['passed']}"


if __name__ == "__main__":
    write_results(sys.argv[1:])
