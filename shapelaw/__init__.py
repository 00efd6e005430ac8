"""Fit conditional scaling laws to training runs, and search transformer shapes that serve fast.

``shapelaw.scaling``, ``shapelaw.trainers`` and ``shapelaw.search`` are the folders of the same
names; each imports only those named before it.
"""

from importlib.metadata import version

__version__ = version("shapelaw")
