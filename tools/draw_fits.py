"""Draws `docs/assets/fits.png`: a drawn photo, and what each `--fit` shows a network of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from petseg.classes import OXFORD
from petseg.data.decode.boxes import Box, Fit, Framing, frame_image, frame_mask
from petseg.data.sources.synthetic import SyntheticSource
from petseg.drawing import overlay

OUT = Path(__file__).parents[1] / "docs" / "assets" / "fits.png"
SIDE, GAP = 180, 14
GREY = 255


def main() -> None:
    """Draw it."""
    image, codes = _street()
    tiles = [_scaled(overlay(image, OXFORD.lookup()[codes], OXFORD), SIDE)]
    for fit, index in ((Fit(kind="squash"), 0), (Fit(kind="pad"), 0), (Fit(kind="crop", scale=(0.9, 0.9)), 5)):
        framing = Framing((SIDE, SIDE), fit, 0, 0, bytes(OXFORD.codes), OXFORD.outside)
        box, small = frame_mask(codes, framing, index)
        shown = frame_image(image, box, (SIDE, SIDE))
        ignored = small == OXFORD.outside
        tinted = overlay(shown, OXFORD.lookup()[np.where(ignored, OXFORD.codes[1], small)], OXFORD)
        tinted[ignored] = shown[ignored]
        tiles.append(tinted)
    width = sum(tile.shape[1] for tile in tiles) + GAP * (len(tiles) - 1)
    canvas = np.full((SIDE, width, 3), GREY, np.uint8)
    left = 0
    for tile in tiles:
        canvas[:, left : left + tile.shape[1]] = tile
        left += tile.shape[1] + GAP
    OUT.parent.mkdir(exist_ok=True)
    Image.fromarray(canvas).quantize(128).save(OUT, optimize=True)


def _street() -> tuple[np.ndarray, np.ndarray]:
    """Three drawn pets beside each other: an image twice as wide as high."""
    source = SyntheticSource(6, 3)
    parts = []
    for pair in list(source.listing().pairs)[1:4]:
        image, mask = (np.asarray(Image.open(io.BytesIO(data))) for data in source.read(pair))
        height, width = mask.shape
        side = Box(0, (width - min(width, height)) // 2, height, min(width, height))
        framing = Framing((260, 220))
        cut = slice(side.left, side.left + side.width)
        parts.append((frame_image(image[:, cut], Box(0, 0, height, side.width), framing.size),
                      frame_mask(np.ascontiguousarray(mask[:, cut]), framing, 0)[1]))  # fmt: skip
    return np.hstack([image for image, _ in parts]), np.hstack([codes for _, codes in parts])


def _scaled(image: np.ndarray, height: int) -> np.ndarray:
    width = round(image.shape[1] * height / image.shape[0])
    return frame_image(image, Box(0, 0, *image.shape[:2]), (height, width))


if __name__ == "__main__":
    main()
