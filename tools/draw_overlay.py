"""Draws `docs/assets/overlay.png`: held-out drawn pets, and below them the masks that a run of the demo predicts.

uv run petseg-train && uv run python tools/draw_overlay.py runs/RUN
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

import petseg
from petseg.data.shards.reader import ShardReader
from petseg.drawing import overlay

OUT = Path(__file__).parents[1] / "docs" / "assets" / "overlay.png"
COUNT, SIDE, GAP = 6, 160, 8


def main(run: str) -> None:
    """Draw it."""
    segmenter = petseg.load(run)
    shards = Path(tomllib.loads((Path(run) / "resolved.toml").read_text("utf-8"))["shards"])
    reader = ShardReader(shards, petseg.Manifest.load(shards), "test")
    columns = []
    for index in range(COUNT):
        image, _ = reader.decoded(index)
        codes = segmenter.predict(image)
        shown = overlay(image, segmenter.classes.lookup()[codes], segmenter.classes)
        columns.append(np.vstack([_square(image), np.full((GAP, SIDE, 3), 255, np.uint8), _square(shown)]))
    gap = np.full((columns[0].shape[0], GAP, 3), 255, np.uint8)
    row = np.hstack([part for column in columns for part in (column, gap)][:-1])
    Image.fromarray(row).quantize(200).save(OUT, optimize=True)


def _square(image: np.ndarray) -> np.ndarray:
    """The middle of an image, at one size."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(middle.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main(sys.argv[1])
