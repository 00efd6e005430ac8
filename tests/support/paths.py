"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"  # data that only some machines have
SUPPORT = Path(__file__).parent
