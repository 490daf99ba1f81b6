"""Drawings of masks: overlays, palette images, and the legend that goes with them."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from petseg.classes import ClassTable

PAPER, INK = (250, 250, 248), (40, 40, 40)
"""Colours of what is drawn beside images."""

_FILL = 0.45
_LIGHT = np.rint(0.25 * np.arange(256) + 0.75 * 255).astype(np.uint8)
_BAND_PIXELS = 1_000_000


def overlay(image: np.ndarray, mask: np.ndarray, classes: ClassTable) -> np.ndarray:
    """The classes' colours blended over an image, with a thin light line between the classes.

    Args:
        image: u8[H, W, 3], RGB; it is not changed.
        mask: u8[H, W], class indices.
        classes: colours by class index.

    Returns:
        u8[H, W, 3].
    """
    height, width = mask.shape
    result = np.empty_like(image)
    palette = classes.palette()
    reach = max(1, round(min(height, width) / 500))
    step = max(1, _BAND_PIXELS // width)
    for first in range(0, height, step):
        last = min(first + step, height)
        colours = np.take(palette, mask[first:last], axis=0)
        band = cv2.addWeighted(image[first:last], 1 - _FILL, colours, _FILL, 0).reshape(-1, 3)
        # Rows beyond the band are looked at too, so that no seam shows where two bands meet.
        line = np.flatnonzero(_edges(mask[first : last + reach], reach)[: last - first])
        band[line] = _LIGHT[band[line]]
        result[first:last] = band.reshape(-1, width, 3)
    return result


def _edges(mask: np.ndarray, reach: int) -> np.ndarray:
    """bool[H, W]: pixels with another class at most `reach` pixels below or to the right of them."""
    corner = np.zeros((reach + 1, reach + 1), np.uint8)
    corner[0] = corner[:, 0] = 1
    least, most = (f(mask, corner, anchor=(0, 0)) for f in (cv2.erode, cv2.dilate))
    edges: np.ndarray = least != most
    return edges


def in_colours(codes: np.ndarray, classes: ClassTable) -> Image.Image:
    """A palette image whose pixels are the codes u8[H, W], and look like their classes; other codes are grey."""
    image = Image.fromarray(codes)
    palette = np.full((256, 3), 128, np.uint8)
    palette[list(classes.codes)] = classes.palette()
    image.putpalette(palette.tobytes())
    return image


def legend(labels: Sequence[str], colours: Sequence[tuple[int, int, int]], width: int, text: int) -> Image.Image | None:
    """A strip with a coloured square before each label, in as many lines as it takes.

    Args:
        labels: what stands in it.
        colours: RGB, one a label.
        width: of the strip, in pixels.
        text: height of the letters, in pixels.

    Returns:
        The strip, or None where a label is wider than that.
    """
    font, gap = _font(text), max(2, text // 2)
    places: list[tuple[int, int]] = []
    x, line = gap, 0
    for label in labels:
        item = text + gap + int(font.getlength(label)) + gap
        if x > gap and x + item > width:
            x, line = gap, line + 1
        if x + item > width:
            return None
        places.append((x, line))
        x += item + gap
    step = text + gap
    strip = Image.new("RGB", (width, gap + (line + 1) * step), PAPER)
    draw = ImageDraw.Draw(strip)
    for label, colour, (left, row) in zip(labels, colours, places, strict=True):
        top = gap + row * step
        draw.rectangle((left, top, left + text - 1, top + text - 1), fill=tuple(colour), outline=INK)
        draw.text((left + text + gap, top + text / 2), label, fill=INK, font=font, anchor="lm")
    return strip


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # matplotlib brings DejaVu Sans, with Greek, Cyrillic and more; importing it would take half a second.
    found = importlib.util.find_spec("matplotlib")
    for folder in (found.submodule_search_locations if found else None) or []:
        path = Path(folder) / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)
