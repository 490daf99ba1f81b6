"""A trained network on images of any size: squashed or padded to its own size, or cut into tiles of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import cv2
import numpy as np
import torch
from torch import nn

from petseg.classes import ClassTable
from petseg.data.decode.boxes import Box, frame_image, padded, whole
from petseg.data.decode.images import chroma_of
from petseg.device import Amp, resolve_amp
from petseg.errors import PetsegError
from petseg.inference.inputs import ImageLike, as_pixels
from petseg.inference.trained import TrainedModel

BAND_VALUES = 1_000_000
"""Most probabilities that are enlarged at once (but at least one row of pixels): they fit a processor's cache."""

_BATCH, _SMALLEST_TILE = 16, 16


class Segmenter:
    """A trained network that takes images of any size; `petseg.load` gives it.

    Args:
        trained: its network is on `device` already (`load_trained` puts it there).
        device: where it runs.
        amp: mixed precision, `auto`, `bf16`, `fp16` or `off`; None for what the device has if the run had any.
        tta: average with the mirrored image (test-time augmentation), in twice the time.
        scales: average over the image enlarged by these factors (test-time augmentation), in as many times the time.
        tile: short side of a tile, in the image's pixels; each tile is squashed to the network's size. 0 for as in
            training: the whole image, squashed or padded, or tiles of the network's size where it learned from crops.
        overlap: smallest share of a tile that its neighbour covers too, 0 to 0.9; there they fade into each other.

    Raises:
        PetsegError: it was trained on images decoded in a way that this petseg does not support; or an option out of
            range.

    Examples:
        >>> pets = petseg.load("runs/mine")  # doctest: +SKIP
        >>> codes, probabilities = pets.predict("photo.jpg"), pets.probabilities("photo.jpg")  # doctest: +SKIP
    """

    def __init__(
        self,
        trained: TrainedModel,
        device: torch.device,
        *,
        amp: str | None = None,
        tta: bool = False,
        scales: Sequence[float] = (1.0,),
        tile: int = 0,
        overlap: float = 0.25,
    ) -> None:
        chroma = chroma_of(trained.decode_policy)
        if chroma is None:
            raise PetsegError(
                f"{trained.path} was trained on images decoded by '{trained.decode_policy}', which this petseg does "
                "not know: upgrade petseg."
            )
        if amp not in {None, *get_args(Amp)}:
            raise PetsegError(f"--amp: unknown choice '{amp}'; choose {', '.join(get_args(Amp))}.")
        if tile != 0 and tile < _SMALLEST_TILE:
            raise PetsegError(
                f"--tile: {tile} is out of range; give {_SMALLEST_TILE} pixels or more, or 0 for no tiles."
            )
        if not 0 <= overlap <= 0.9:
            raise PetsegError(f"--overlap: {overlap} is out of range; give 0 to 0.9 of a tile.")
        self.classes: ClassTable = trained.classes
        self.tones, self.chroma = trained.tones, chroma
        self.network: nn.Module = trained.network
        self.height, self.width = trained.config.height_width
        self._trained = trained.mirrored() if tta else trained
        self._device = device
        self._amp = resolve_amp(cast(Amp, amp or ("off" if trained.config.amp == "off" else "auto")), device)
        if not scales or not all(0.1 <= scale <= 10 for scale in scales):
            raise PetsegError(f"--tta-scale: {list(scales)} is out of range; give factors from 0.1 to 10.")
        self._tile, self._overlap, self._scales = tile, overlap, tuple(scales)
        # Runs settle it before they save anything.
        self._fit = "squash" if trained.config.fit == "auto" else trained.config.fit

    def __repr__(self) -> str:
        tile = f", tiles of {self._tile} px" if self._tile else ""
        return (
            f"Segmenter({str(self._trained.path)!r}, {self.classes}, size {self.height}x{self.width}{tile}, "
            f"on {self._device})"
        )

    def predict(self, image: ImageLike) -> np.ndarray:
        """The mask of an image at its own size: u8[H, W], codes as in the masks that the network learned from.

        Args:
            image: path of an image, a PIL image, or u8[H, W, 3] in RGB; upright, or with an EXIF orientation.

        Raises:
            PetsegError: it cannot be read, or is not an image.
        """
        return self.classes.to_codes(self.segment(as_pixels(image, self.tones, self.chroma)))

    def probabilities(self, image: ImageLike) -> np.ndarray:
        """Class probabilities of an image at its own size, enlarged bilinearly: f32[C, H, W], in the classes' order.

        Args:
            image: as for `predict`.

        Raises:
            PetsegError: it cannot be read, or is not an image.
        """
        pixels = as_pixels(image, self.tones, self.chroma)
        found = np.empty((len(self.classes), *pixels.shape[:2]), np.float32)
        for rows, band in self.bands(pixels):
            found[:, rows] = band
        return found

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Class indices at the image's own size, of the likeliest class (the first of several).

        Args:
            image: u8[H, W, 3], RGB, upright.

        Returns:
            u8[H, W], values in [0, C).
        """
        mask = np.empty(image.shape[:2], np.uint8)
        for rows, band in self.bands(image):
            mask[rows] = likeliest(band)
        return mask

    def bands(self, image: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Class probabilities at the image's own size, some rows at a time: some MB, however big the image.

        Args:
            image: u8[H, W, 3], RGB, upright.

        Yields:
            The rows, and f32[C, len(rows), W] of them.
        """
        if len(self._scales) == 1:
            yield from self._bands(image, self._scales[0])
            return
        for parts in zip(*(self._bands(image, scale) for scale in self._scales), strict=True):
            yield parts[0][0], np.mean([band for _, band in parts], axis=0)

    def _bands(self, image: np.ndarray, scale: float) -> Iterator[tuple[slice, np.ndarray]]:
        height, width = image.shape[:2]
        down, across = self._spans(height, width, scale)
        found: dict[int, list[np.ndarray]] = {}
        step = max(1, BAND_VALUES // (len(self.classes) * width))
        for first in range(0, height, step):
            rows = slice(first, min(first + step, height))
            met = [n for n, span in enumerate(down) if span.first < rows.stop and rows.start < span.last]
            tiles = {
                n: [Box(down[n].start, span.start, down[n].length, span.length) for span in across]
                for n in met
                if n not in found
            }
            found = {n: found[n] if n in found else self._at_network_size(image, tiles[n]) for n in met}
            if len(down) == len(across) == 1:
                only, column = down[0], across[0]
                part = slice(rows.start - only.start, rows.stop - only.start)
                yield rows, enlarge(found[0][0], only.length, column.length, part, column.inside)
                continue
            band = np.zeros((len(self.classes), rows.stop - rows.start, width), np.float32)
            for n in met:
                span = down[n]
                part = slice(max(rows.start, span.first), min(rows.stop, span.last))
                weights = span.weights[part.start - span.first : part.stop - span.first, None]
                for column, small in zip(across, found[n], strict=True):
                    inside = slice(part.start - span.start, part.stop - span.start)
                    large = enlarge(small, span.length, column.length, inside, column.inside)
                    large *= weights * column.weights
                    band[:, part.start - rows.start : part.stop - rows.start, column.first : column.last] += large
            yield rows, band

    def _spans(self, height: int, width: int, scale: float) -> tuple[list[_Span], list[_Span]]:
        """Tiles of an image of a size, enlarged by `scale`: their rows, and their columns."""
        clipped = self._fit == "squash" and scale == 1
        if self._tile or self._fit == "crop":
            short = min(self.height, self.width)
            sides = [(self._tile or short) / short * side for side in (self.height, self.width)]
        else:
            box = whole(height, width) if self._fit == "squash" else padded(height, width, (self.height, self.width))
            sides = [box.height, box.width]
        down, across = (
            _spans(length, max(1, round(side / scale)), self._overlap, clipped=clipped)
            for length, side in zip((height, width), sides, strict=True)
        )
        return down, across

    def at_network_size(self, image: np.ndarray) -> np.ndarray:
        """Class probabilities at the network's size, f32[C, height, width], of an image u8[H, W, 3].

        The image is squashed by the resize that every loader is held to.
        """
        return self._at_network_size(image, [whole(*image.shape[:2])])[0]

    def _at_network_size(self, image: np.ndarray, boxes: list[Box]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for first in range(0, len(boxes), _BATCH):
            part = boxes[first : first + _BATCH]
            small = np.empty((len(part), self.height, self.width, 3), np.uint8)
            for row, box in enumerate(part):
                frame_image(image, box, (self.height, self.width), small[row])
            images = torch.from_numpy(small).to(self._device)
            found.extend(self._trained.probabilities(images, self._amp).contiguous().cpu().numpy())
        return found


def enlarge(
    probabilities: np.ndarray, height: int, width: int, rows: slice, columns: slice | None = None
) -> np.ndarray:
    """Part of a bilinear enlargement, as `F.interpolate(..., mode="bilinear", align_corners=False)` makes it.

    Args:
        probabilities: f32[C, h, w].
        height: rows of the whole result.
        width: columns of the whole result.
        rows: those that are wanted.
        columns: likewise; default: all of them.

    Returns:
        f32[C, len(rows), len(columns)]; not a view.
    """
    h, w = probabilities.shape[1:]
    columns = slice(0, width) if columns is None else columns
    if (h, w) == (height, width):
        return probabilities[:, rows, columns].copy()
    # Pixel centres, clamped at the rim.
    y = ((np.arange(rows.start, rows.stop) + 0.5) * h / height - 0.5).clip(0, h - 1)
    above = y.astype(np.intp)
    below = np.minimum(above + 1, h - 1)
    weight = (y - above).astype(np.float32)[:, None]
    if columns != slice(0, width):
        x = ((np.arange(columns.start, columns.stop) + 0.5) * w / width - 0.5).clip(0, w - 1)
        left = x.astype(np.intp)
        right, share = np.minimum(left + 1, w - 1), (x - left).astype(np.float32)
    large = np.empty((len(probabilities), len(y), columns.stop - columns.start), np.float32)
    for plane, out in zip(probabilities, large, strict=True):
        band = plane[above] * (1 - weight) + plane[below] * weight
        if columns != slice(0, width):  # of an image that is padded
            np.add(band[:, left] * (1 - share), band[:, right] * share, out=out)
        else:
            cv2.resize(band, (width, len(y)), dst=out, interpolation=cv2.INTER_LINEAR)
    return large


def likeliest(probabilities: np.ndarray) -> np.ndarray:
    """Class index of the highest probability, the first of several: u8[H, W] of f32[C, H, W]."""
    # One plane after another runs through memory in order, which argmax over the first axis does not.
    best = probabilities[0].copy()
    found = np.zeros(best.shape, np.uint8)
    for index, plane in enumerate(probabilities[1:], start=1):
        found[plane > best] = index
        np.maximum(best, plane, out=best)
    return found


@dataclass(frozen=True, slots=True)
class _Span:
    """The pixels along one axis that a tile covers; it may reach beyond the image."""

    start: int
    length: int
    first: int
    last: int
    """Those of the image, from `first` to before `last`."""
    weights: np.ndarray
    """f32[last - first]: the tile's weight in each of these; over all tiles they add up to 1."""

    @property
    def inside(self) -> slice:
        """Those of the image, counted from the tile's first."""
        return slice(self.first - self.start, self.last - self.start)


def _spans(length: int, tile: int, overlap: float, *, clipped: bool) -> list[_Span]:
    """Tiles along an axis, evenly spread; one where they would be no smaller than it.

    Args:
        length: pixels of the image.
        tile: of a tile.
        overlap: smallest share of a tile that its neighbour covers.
        clipped: a tile longer than the image becomes as long as that, and else reaches beyond it at both ends.
    """
    if tile >= length:
        tile = length if clipped else tile
        return [_Span(-((tile - length + 1) // 2), tile, 0, length, np.ones(length, np.float32))]
    count = 1 + math.ceil((length - tile) / max(1, math.floor(tile * (1 - overlap))))
    starts = np.linspace(0, length - tile, count).round().astype(int).tolist()
    ramp = np.minimum(np.arange(1, tile + 1), np.arange(tile, 0, -1)).astype(np.float32)
    total = np.zeros(length, np.float32)
    for start in starts:
        total[start : start + tile] += ramp
    return [_Span(start, tile, start, start + tile, ramp / total[start : start + tile]) for start in starts]
