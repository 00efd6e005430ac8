"""Run the commands that the pages show and compare what they print with the pages.

A block that begins with ```` ```console ```` holds one command after ``$ `` (a backslash at the end
of a line goes on in the next) and its output. The commands of a page run in their order in one new
folder that holds a link to ``data/``. ``python docs/examples.py`` compares; ``--write`` writes the
outputs into the pages.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

DOCS = Path(__file__).parent
BLOCK = re.compile(r"```console\n\$ (?P<command>(?:.*\\\n)*.*)\n(?P<output>(?:(?!```).*\n)*)```\n")
TAKEN = re.compile(r"\b\d+(?:\.\d+)? s\b")  # seconds that a command took
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
AGREE_DRAWN = 0.4  # the same for draws of a posterior, whose paths diverge with the first rounding
AGREE = 0.02  # share by which a number may differ: processors round differently
SECONDS = 600
POSTERIOR = "from its posterior"  # in what a command prints of a fit with a prior
REMARK = re.compile(r"^- .*(?:on the prior|have not converged).*\n(?:  .*\n)*", re.MULTILINE)


def pages() -> list[Path]:
    """Return the pages with examples, and the README."""
    found = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
    return [page for page in found if BLOCK.search(page.read_text(encoding="utf-8"))]


def run(command: str, folder: Path) -> str:
    """Run a command in a folder and return what it prints to standard output.

    Raises
    ------
    subprocess.CalledProcessError
        The command fails.
    """
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "80"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder, env=os.environ | here | {"SHAPELAW_CACHE": str(folder / ".cache")},
        check=True, stdout=subprocess.PIPE, text=True, timeout=SECONDS,
    )  # fmt: skip
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def alike(printed: str, expected: str) -> bool:
    """Return whether two outputs have the same words and nearly the same numbers.

    Spaces and rules of tables do not count, for they depend on the width of the numbers; nor do
    seconds, nor remarks on the draws of a posterior, whose numbers need agree only roughly.
    """
    drawn = POSTERIOR in expected
    timeless = [TAKEN.sub("", text) for text in (printed, expected)]
    if drawn:
        timeless = [REMARK.sub("", text) for text in timeless]
    plain = [re.sub(r"[\s─━═]+", " ", text).strip() for text in timeless]
    first, second = (NUMBER.findall(text) for text in plain)
    if NUMBER.sub("#", plain[0]) != NUMBER.sub("#", plain[1]):
        return False
    pairs = zip(first, second, strict=True)
    values = ((float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs)
    return all(
        math.isclose(a, b, rel_tol=AGREE_DRAWN if drawn else AGREE, abs_tol=0.011)
        for a, b in values
    )


def with_outputs(page: str) -> str:
    """Return the text of a page whose blocks hold what their commands print now."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(DOCS.parent / "data")

        def renewed(match: re.Match[str]) -> str:
            output = run(match["command"], Path(folder))
            kept = match["output"] if alike(output, match["output"]) else output
            return f"```console\n$ {match['command']}\n{kept}```\n"

        return BLOCK.sub(renewed, page)


def main() -> None:
    """Compare or write the outputs of all pages; exits with 1 where one differs."""
    write, differing = "--write" in sys.argv[1:], []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        renewed = with_outputs(text)
        if renewed != text:
            differing.append(page.name)
            if write:
                page.write_text(renewed, encoding="utf-8")
            else:
                sys.stderr.write(f"{page.name} would be:\n{renewed}\n")
    if differing and not write:
        sys.exit(f"outputs differ in {', '.join(differing)}; docs/examples.py --write renews them")


if __name__ == "__main__":
    main()
