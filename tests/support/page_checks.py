"""Checks of a page in a browser: nothing is cut, and every picture has a text alternative."""

from typing import Any

WIDTHS = (1440, 768, 390)
CUT = """() => [document.documentElement, ...document.querySelectorAll('figure, .chart, .wide')]
  .filter((part) => part.scrollWidth > part.clientWidth)
  .map((part) => `${part.tagName} ${part.id} ${part.textContent.trim().slice(0, 60)}: ` +
                 `${part.scrollWidth} px in ${part.clientWidth} px`)"""
WIDE = """() => [...document.querySelectorAll('figure :is(img, .main-svg)')]
  .filter((drawn) => drawn.getBoundingClientRect().right >
                     drawn.closest('figure').getBoundingClientRect().right + 1)
  .map((drawn) => `${drawn.tagName} ${drawn.getBoundingClientRect().width} px`)"""
MUTE = """() => [...document.querySelectorAll('img, svg, canvas')]
  .filter((drawn) => !drawn.closest('[aria-label]:not([aria-label=""]), [alt]:not([alt=""])'))
  .filter((drawn) => !drawn.closest('[aria-hidden=true]'))
  .map((drawn) => drawn.outerHTML.slice(0, 200))"""


def parts_cut(page: Any) -> list[str]:
    """Return the parts of a page that are wider than their place."""
    return [*page.evaluate(CUT), *page.evaluate(WIDE)]


def pictures_without_words(page: Any) -> list[str]:
    """Return the pictures of a page that have no text alternative."""
    return list(page.evaluate(MUTE))
