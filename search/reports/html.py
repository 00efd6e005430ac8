"""HTML pages from the Jinja2 templates in ``pages/``, with every value escaped."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from shapelaw.scaling.plots.style import save_figure
from shapelaw.scaling.units import format_bytes, format_count, format_seconds
from shapelaw.search.proposals.probabilities import probability_text

PAGES = Path(__file__).parent / "pages"


def signed(value: float) -> str:
    """Format a number with its sign and two decimals.

    Examples
    --------
    >>> signed(1.234), signed(-0.5)
    ('+1.23', '−0.50')
    """
    return f"{value:+.2f}".replace("-", "−")


FORMATS: dict[str, Callable[[float], str]] = {
    "bytes": format_bytes,
    "count": format_count,
    "loss": "{:.4f}".format,
    "probability": probability_text,
    "ratio": "{:.3g}".format,
    "seconds": format_seconds,
    "signed": signed,
    "times": "{:.2f} ×".format,
    "whole": "{:,.0f}".format,
}


def formatted(name: str, value: float | None) -> str:
    """Format a number by one of :data:`FORMATS`; a missing one is a dash."""
    return "–" if value is None else FORMATS[name](value)


def render(template: str, **values: object) -> str:
    """Fill a template of ``pages/``.

    Raises
    ------
    jinja2.UndefinedError
        A value that the template uses is missing.
    """
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["formatted"] = lambda value, name: formatted(name, value)
    return environment.get_template(template).render(**values)


@dataclass(frozen=True)
class Picture:
    """A figure as two ``data:`` addresses, which embed it in a page: usual, and for phones."""

    usual: str
    narrow: str

    @classmethod
    def of(cls, usual: Path, narrow: Figure) -> "Picture":
        """Make the picture of a saved PNG and of the same figure drawn for phones."""
        with TemporaryDirectory() as folder:
            save_figure(narrow, path := Path(folder) / "narrow.png")
            return cls(_image_source(usual), _image_source(path))


def _image_source(path: Path) -> str:
    """Return a PNG as a ``data:`` address."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
