"""JSON files of links: coefficients with covariance, source of the fit, hold-out errors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.accuracy.curves import CURVES
from shapelaw.scaling.accuracy.link import Link, Links, LinkStage, with_other
from shapelaw.scaling.accuracy.predictions import LinkSource, Task
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json

SCHEMA = 1
KIND = "accuracy-links"


def save_links(path: Path, links: Link | Links) -> None:
    """Write links to a JSON file; the loaded links predict the same to 1e-12."""
    write_json(path, document(links))


def document(links: Link | Links) -> dict[str, Any]:
    """Build the document that :func:`save_links` writes.

    Symmetric matrices are stored as the rows of their lower triangle.
    """
    links = links.alone() if isinstance(links, Link) else links
    measured = links.measured
    return {
        "schema_version": SCHEMA,
        "kind": KIND,
        "validation": measured.validation,
        "loss_range": list(measured.loss_range),
        "run_ids": list(measured.run_ids),
        "data_sha256": measured.data_sha256,
        "provenance": dict(measured.provenance),
        "chance": links.chance,
        "hold_out": list(links.hold_out),
        **_part(links),
        "ceiling_one": None if links.other is None else _part(links.other),
    }


def _part(links: Links) -> dict[str, Any]:
    return {
        "links": [_link(link) for link in links.links],
        "covariance": _lower(links.covariance),
        "noise": _lower(links.noise),
    }


def _link(link: Link) -> dict[str, Any]:
    stages = [
        {
            "curve": stage.curve.name,
            **step,
            "parameters": stage.theta.tolist(),
        }
        for stage, step in zip(link.stages, link.coefficients(), strict=True)
    ]
    return {
        "task": link.task.name,
        "chance": link.chance,
        "items": link.task.items,
        "ceiling": link.ceiling,
        "form": link.form,
        "degrees": link.degrees,
        "status": link.status,
        "steps": stages,
    }


def load_links(path: Path) -> Links:
    """Read links from a file that :func:`save_links` wrote.

    Raises
    ------
    InputError
        The file holds no links, has another schema version, or is damaged.
    """
    content = read_json(path)
    if content.get("kind") != KIND or content.get("schema_version") != SCHEMA:
        raise InputError(
            f"{path} must be {KIND} of schema version {SCHEMA}, but is "
            f"{content.get('kind')!r} of version {content.get('schema_version')!r}; "
            "fit the links again and save them"
        )
    try:
        return _links(content)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); fit the links again and save them"
        ) from None


def _links(content: dict[str, Any]) -> Links:
    low, high = content["loss_range"]
    measured = LinkSource(
        validation=str(content["validation"]),
        loss_range=(float(low), float(high)),
        run_ids=tuple(map(str, content["run_ids"])),
        data_sha256=str(content["data_sha256"]),
        provenance={str(name): str(text) for name, text in content["provenance"].items()},
    )
    ceiling_one = content["ceiling_one"]
    links = _read_part(content, measured)
    hold_out = tuple(dict(row) for row in content["hold_out"])
    other = ceiling_one and _read_part(ceiling_one, measured)
    return with_other(replace(links, hold_out=hold_out), other)


def _read_part(content: dict[str, Any], measured: LinkSource) -> Links:
    covariance, noise = _symmetric(content["covariance"]), _symmetric(content["noise"])
    links: list[Link] = []
    parameter = step = 0
    for written in content["links"]:
        stages = tuple(_stage(stage) for stage in written["steps"])
        count = sum(len(stage.theta) for stage in stages)
        parameters = slice(parameter, parameter := parameter + count)
        steps = slice(step, step := step + len(stages))
        links.append(
            Link(
                task=Task(name=written["task"], chance=written["chance"], items=written["items"]),
                form=str(written["form"]),
                stages=stages,
                covariance=covariance[parameters, parameters],
                noise=noise[steps, steps],
                degrees=int(written["degrees"]),
                measured=measured,
                status=str(written["status"]),
            )
        )
    if not links or len(covariance) != parameter or len(noise) != step:
        raise ValueError(f"its matrices do not fit {parameter} parameters and {step} steps")
    return Links(links=tuple(links), covariance=covariance, noise=noise)


def _stage(written: dict[str, Any]) -> LinkStage:
    if written["curve"] not in CURVES:
        raise ValueError(f"it names an unknown curve {written['curve']!r}")
    curve = CURVES[written["curve"]](**written["constants"])
    theta = np.array(written["parameters"], dtype=float)
    if not np.all(np.isfinite(theta)) or len(theta) != len(curve.bounds(np.array([1.0, 2.0]))):
        raise ValueError(
            f"a {written['curve']} needs other parameters than {written['parameters']}"
        )
    return LinkStage(curve=curve, theta=theta, at_bound=tuple(written["at_bound"]))


def _lower(matrix: np.ndarray) -> list[list[float]]:
    return [row[: i + 1].tolist() for i, row in enumerate(matrix)]


def _symmetric(rows: list[list[float]]) -> np.ndarray:
    matrix = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        matrix[i, : i + 1] = row
    if not np.all(np.isfinite(matrix)):
        raise ValueError("a matrix holds a number that is not finite")
    return np.asarray(matrix + np.tril(matrix, -1).T)
