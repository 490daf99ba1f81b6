"""What sources of plain files share: names, and reading."""

from __future__ import annotations

import re
from pathlib import Path

KEY = re.compile(r"[A-Za-z0-9_-]{1,96}")
"""A fit key; longer ones do not fit into a plain tar header."""

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Suffixes of pictures."""

MASKS = frozenset({".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm"})
"""Suffixes of masks: formats that keep codes."""


def ignored(path: Path) -> bool:
    """Whether a file is passed over by name: MATLAB's, and what hides (also `._*` that macOS leaves behind)."""
    return path.name.startswith(".") or path.suffix.lower() == ".mat"


def unfit_key(key: str) -> str | None:
    """Why a key cannot name a sample, or None."""
    if KEY.fullmatch(key):
        return None
    if len(key) > 96:
        return "its name is longer than 96 characters"
    return "its name holds characters other than letters, digits, _ and -"
