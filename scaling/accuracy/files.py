"""JSON files of links: coefficients with covariance, source of the fit, hold-out errors."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np

from shapelaw.scaling.accuracy.curves import CURVES
from shapelaw.scaling.accuracy.link import Link, Links, LinkStage, with_other
from shapelaw.scaling.accuracy.predictions import LinkSource, Task
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.scaling.schema import Count, Fraction, Name, Positive, Within, conform, damaged

SCHEMA = 1
KIND = "accuracy-links"
Triangle = Annotated[list[list[float]], Within(0, 10_000)]  # rows of a symmetric matrix


class StoredStage(TypedDict):
    """Step of a link."""

    curve: Literal["sigmoid", "exponential-error", "line", "power-law"]
    constants: dict[Name, float | None]
    parameters: np.ndarray
    at_bound: list[Name]


class StoredLink(TypedDict):
    """Link to one task."""

    task: Name
    chance: Fraction
    items: Positive | None
    form: Name
    degrees: Count
    status: str
    steps: Annotated[list[StoredStage], Within(1, 2)]


class StoredPart(TypedDict):
    """Links with the covariance of all their parameters, and of a new model around their steps."""

    links: Annotated[list[StoredLink], Within(1)]
    covariance: Triangle
    noise: Triangle


class StoredLinks(StoredPart):
    """Content of a file of links."""

    validation: str
    loss_range: tuple[float, float]
    run_ids: tuple[str, ...]
    data_sha256: str
    provenance: dict[Name, str]
    hold_out: list[dict[Name, str | float | bool | None]]
    ceiling_one: StoredPart | None


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
        return _links(conform(content, StoredLinks))
    except (TypeError, ValueError) as error:  # of constants that a curve does not have, too
        raise damaged(path, error, "fit the links again and save them") from None


def _links(content: StoredLinks) -> Links:
    measured = LinkSource(
        validation=content["validation"],
        loss_range=content["loss_range"],
        run_ids=content["run_ids"],
        data_sha256=content["data_sha256"],
        provenance=content["provenance"],
    )
    links = _read_part(content, measured)
    hold_out: tuple[dict[str, Any], ...] = tuple(content["hold_out"])
    ceiling_one = content["ceiling_one"]
    other = None if ceiling_one is None else _read_part(ceiling_one, measured)
    return with_other(replace(links, hold_out=hold_out), other)


def _read_part(content: StoredPart, measured: LinkSource) -> Links:
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
                form=written["form"],
                stages=stages,
                covariance=covariance[parameters, parameters],
                noise=noise[steps, steps],
                degrees=written["degrees"],
                measured=measured,
                status=written["status"],
            )
        )
    if len(covariance) != parameter or len(noise) != step:
        raise InputError(f"its matrices do not fit {parameter} parameters and {step} steps")
    return Links(links=tuple(links), covariance=covariance, noise=noise)


def _stage(written: StoredStage) -> LinkStage:
    curve = CURVES[written["curve"]](**written["constants"])
    theta = written["parameters"]
    if theta.shape != (len(curve.bounds(np.array([1.0, 2.0]))),):
        raise InputError(
            f"a {written['curve']} needs other parameters than {shown(theta.tolist())}"
        )
    return LinkStage(curve=curve, theta=theta, at_bound=tuple(written["at_bound"]))


def _lower(matrix: np.ndarray) -> list[list[float]]:
    return [row[: i + 1].tolist() for i, row in enumerate(matrix)]


def _symmetric(rows: list[list[float]]) -> np.ndarray:
    matrix = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        if len(row) != i + 1:
            raise InputError(f"row {i + 1} of a triangular matrix has {len(row)} values")
        matrix[i, : i + 1] = row
    return np.asarray(matrix + np.tril(matrix, -1).T)
