"""What is installed is locked: every requirement of every extra has a pin with hashes."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shapelaw.scaling.extras import EXTRA_OF, EXTRAS
from support.paths import ROOT

LOCKS = ROOT / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED = {"core": None, "main": "train", "test": "test", "dev": "dev"}


def wanted(extra: str | None) -> Iterator[Requirement]:
    """Requirements of the project with one of its extras, without those of other packages."""
    yield from map(Requirement, PROJECT["dependencies"])
    open_extras = [extra] if extra else []
    while open_extras:
        for text in PROJECT["optional-dependencies"][open_extras.pop()]:
            requirement = Requirement(text)
            if requirement.name == PROJECT["name"]:
                open_extras.extend(requirement.extras)
            else:
                yield requirement


def pins(name: str) -> dict[str, set[str]]:
    """Locked versions of every package: more than one where they depend on Python."""
    found: dict[str, set[str]] = {}
    for line in (LOCKS / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.removesuffix("\\"))
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            found.setdefault(canonicalize_name(requirement.name), set()).add(pin.version)
    return found


@pytest.mark.parametrize("name", INSTALLED)
def test_every_requirement_has_a_pin_inside_its_range(name: str) -> None:
    torch = pins("torch-cpu")
    locked = pins(name) | (torch if name != "core" else {})
    for requirement in wanted(INSTALLED[name]):
        versions = locked[canonicalize_name(requirement.name)]
        assert all(map(requirement.specifier.contains, versions)), requirement


@pytest.mark.parametrize("path", sorted(LOCKS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_pin_has_hashes_and_no_file_names_an_index(path: Path) -> None:
    if path.stem == "without-torch":
        return
    text = path.read_text(encoding="utf-8")
    pinned = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert len(pinned) >= 1
    assert all("--hash=sha256:" in part for part in pinned)
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)


@pytest.mark.parametrize("name", ["core", "main", "test", "torch-cuda"])
def test_a_smaller_lock_pins_what_the_whole_one_pins(name: str) -> None:
    whole, part = pins("dev"), pins(name)
    shared = whole.keys() & part.keys()
    assert len(shared) >= 5
    assert {package: part[package] for package in shared} == {
        package: whole[package] for package in shared
    }


@pytest.mark.parametrize("name", ["core", "main", "test", "dev", "vllm"])
def test_torch_comes_from_its_own_lock_only(name: str) -> None:
    assert pins(name).keys().isdisjoint({"torch", "torchaudio", "torchcodec", "torchvision"})


def test_both_builds_of_torch_have_one_version() -> None:
    (cpu,), (cuda,) = pins("torch-cpu")["torch"], pins("torch-cuda")["torch"]
    assert cpu.removesuffix("+cpu") == cuda


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_doctor_looks_at_every_package_of_every_extra(extra: str) -> None:
    requirements = map(Requirement, PROJECT["optional-dependencies"][extra])
    named = {each.name for each in requirements if each.name != PROJECT["name"]}
    purpose, packages = EXTRAS[extra]
    looked_at = {canonicalize_name(package) for package in packages}
    elsewhere = {canonicalize_name(package) for package in EXTRA_OF} - looked_at
    assert purpose
    missing = {canonicalize_name(name) for name in named} - looked_at - elsewhere
    assert not missing


def test_doctor_looks_at_no_other_extra() -> None:
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"])
