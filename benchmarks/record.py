"""Results of benchmarks as JSON documents with commit, machine and command."""

import json
import platform
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
# What the installed command runs; it may be missing on PATH.
COMMAND = [sys.executable, "-c", "from shapelaw.search.cli import main; main()"]


def finish(name: str, figures: dict[str, object]) -> None:
    """Write the figures to ``results/NAME.json`` and print them as the last line."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    document = {
        "benchmark": name,
        **figures,
        "commit": commit.stdout.strip(),
        "machine": f"{_processor()}, Python {platform.python_version()}",
        "command": " ".join(["python", *map(_portable, sys.argv)]),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


def _portable(argument: str) -> str:
    """Reduce an absolute path to its last name; return other arguments unchanged."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _processor() -> str:
    """Describe the processors of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()
