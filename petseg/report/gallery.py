"""Rows of small images: what went in, what should come out, what came out, and how sure the network was."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petseg.classes import IGNORE_INDEX
from petseg.report.looks import RGB, ClassLook

COLOUR_MAP = "viridis"
"""Perceptually even, and readable with any colour vision."""

MAX_PROBABILITIES = 3
"""Probability images a row; with more classes, those that cover the most of it."""

ERROR_COLOUR: RGB = (255, 0, 128)
"""Of wrong pixels: a hue that neither pets nor the classes' colours have."""

_TINT = 0.58
_SIDE, _SMALL_SIDE, _MANY = 360, 220, 16


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Panel:
    """One image of the gallery, with what the network made of it."""

    key: str
    """The sample's key or file name; any text."""
    image: np.ndarray
    """u8[H, W, 3], RGB."""
    truth: np.ndarray
    """i64[H, W], class indices in [0, C), or 255 for pixels that do not count."""
    probabilities: np.ndarray
    """f32[C, H, W], 0 to 1, C of 2 or more; they need not add up to 1."""
    iou: float
    """Mean IoU of this image, 0 to 1; NaN where nothing counts."""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8 or not self.image.size:
            raise ValueError(f"{self.key!r}: image is u8[H, W, 3], not {self.image.dtype}{list(self.image.shape)}")
        if self.truth.shape != self.image.shape[:2]:
            raise ValueError(f"{self.key!r}: truth is {self.truth.shape}, the image {self.image.shape[:2]}")
        if self.probabilities.ndim != 3 or self.probabilities.shape[1:] != self.truth.shape or self.classes < 2:
            raise ValueError(
                f"{self.key!r}: probabilities are {self.probabilities.shape}, not (2 or more, {self.truth.shape})"
            )
        strange = (self.truth != IGNORE_INDEX) & ((self.truth < 0) | (self.truth >= self.classes))
        if strange.any():
            raise ValueError(f"{self.key!r}: truth holds {self.truth[strange][0]}, no index of {self.classes} classes")

    @property
    def classes(self) -> int:
        """Number of classes, C."""
        return int(self.probabilities.shape[0])

    @property
    def prediction(self) -> np.ndarray:
        """The most probable class, i64[H, W]."""
        best: np.ndarray = np.nan_to_num(self.probabilities, nan=-1.0).argmax(0)
        return best


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One small image."""

    label: str
    alt: str
    source: str
    """A `data:` address."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample of the gallery."""

    key: str
    iou: float
    wrong: float | None
    """Share of the counted pixels that are wrong, in percent."""
    width: int
    """Pixels of every tile."""
    height: int
    tiles: tuple[Tile, ...]


def gallery_rows(panels: Sequence[Panel], looks: Sequence[ClassLook], *, side: int = _SIDE) -> list[Row]:
    """Draw the rows of a gallery.

    Args:
        panels: the samples, in order.
        looks: names and colours by class index, at least as many as the panels have classes.
        side: pixels of a tile's longer side (twice what the page shows, for sharp screens).

    Raises:
        ValueError: a panel has more classes than `looks`.
    """
    table = probability_colours()
    return [_row(panel, looks, table, side) for panel in panels]


def tile_side(rows: int) -> int:
    """Pixels of a tile's longer side that keep the page of `rows` rows below 3 MB."""
    return _SIDE if rows <= _MANY else _SMALL_SIDE


def probability_colours() -> np.ndarray:
    """The colour map as a table: u8[256, 3], from probability 0 to 1."""
    from matplotlib import colormaps

    table: np.ndarray = (colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return table


def overlay(image: np.ndarray, indices: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Tint an image by class.

    Args:
        image: u8[H, W, 3].
        indices: i64[H, W], class indices; 255 stays grey.
        palette: u8[C, 3].

    Returns:
        u8[H, W, 3].
    """
    counted = (indices != IGNORE_INDEX)[..., None]
    colours = palette[np.where(counted[..., 0], indices, 0)].astype(np.float32)
    tinted = image * (1 - _TINT) + colours * _TINT
    grey = np.repeat(image.mean(-1, keepdims=True) * 0.5 + 64, 3, axis=-1)
    return np.where(counted, tinted, grey).round().clip(0, 255).astype(np.uint8)


def mark(image: np.ndarray, wrong: np.ndarray, period: int = 9) -> np.ndarray:
    """Hatch pixels, so that what lies beneath still shows.

    Args:
        image: u8[H, W, 3].
        wrong: bool[H, W], the pixels to hatch.
        period: pixels from stripe to stripe; a stripe is half of it.

    Returns:
        u8[H, W, 3].
    """
    rows, columns = np.indices(wrong.shape)
    stripe = (rows + columns) % period < period // 2
    marked = image.copy()
    marked[wrong & stripe] = ERROR_COLOUR
    return marked


def _row(panel: Panel, looks: Sequence[ClassLook], table: np.ndarray, side: int) -> Row:
    if panel.classes > len(looks):
        raise ValueError(f"{panel.key!r} has {panel.classes} classes, but only {len(looks)} have a name and a colour")
    palette = np.asarray([look.colour for look in looks], dtype=np.uint8)
    height, width = panel.truth.shape
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = _fitted(panel.image, size)
    truth = _nearest(panel.truth, size)
    # Probabilities are enlarged smoothly, decisions never: a class index has no in-between.
    predicted = _nearest(panel.prediction, size)
    wrong = (predicted != truth) & (truth != IGNORE_INDEX)
    counted = int((panel.truth != IGNORE_INDEX).sum())
    errors = int(((panel.prediction != panel.truth) & (panel.truth != IGNORE_INDEX)).sum())
    tiles = [
        Tile(label="Image", alt=f"{panel.key}: the image", source=_webp(image)),
        Tile(label="Truth", alt=f"{panel.key}: true classes over the image",
             source=_webp(overlay(image, truth, palette))),
        Tile(label="Prediction", alt=f"{panel.key}: predicted classes over the image, wrong pixels hatched",
             source=_webp(mark(overlay(image, predicted, palette), wrong))),
    ]  # fmt: skip
    for index in _shown_classes(panel):
        levels = np.nan_to_num(panel.probabilities[index], nan=0.0).clip(0, 1)
        name = looks[index].name
        image = table[_smooth((levels * 255).round().astype(np.uint8), size)]
        tiles.append(Tile(label=f"P({name})", alt=f"{panel.key}: probability of {name}", source=_webp(image)))
    return Row(
        key=panel.key,
        iou=panel.iou,
        wrong=100 * errors / counted if counted else None,
        width=size[0],
        height=size[1],
        tiles=tuple(tiles),
    )


def _shown_classes(panel: Panel) -> list[int]:
    """The classes that cover the most, true or predicted, in the order of their indices."""
    if panel.classes <= MAX_PROBABILITIES:
        return list(range(panel.classes))
    counted = panel.truth[panel.truth != IGNORE_INDEX]
    area = np.bincount(counted, minlength=panel.classes) + np.bincount(
        panel.prediction.ravel(), minlength=panel.classes
    )
    return sorted(np.argsort(-area, kind="stable")[:MAX_PROBABILITIES].tolist())


def _nearest(indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    rows = ((2 * np.arange(height) + 1) * indices.shape[0]) // (2 * height)
    columns = ((2 * np.arange(width) + 1) * indices.shape[1]) // (2 * width)
    enlarged: np.ndarray = indices[rows][:, columns]
    return enlarged


def _fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS))


def _smooth(levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(levels)).resize(size, Image.Resampling.BILINEAR))


def _webp(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
