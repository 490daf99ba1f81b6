"""A trained network on pictures of any size: squashed to its own size, or cut into tiles of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast, get_args

import cv2
import numpy as np
import torch
from torch import nn

from petseg.classes import ClassTable
from petseg.data.decode.resize import resize_image
from petseg.device import Amp, resolve_amp
from petseg.errors import PetsegError
from petseg.inference.photos import Picture, as_pixels
from petseg.inference.trained import TrainedModel

BAND_VALUES = 1_000_000
"""Most probabilities that are enlarged at once (but at least one row of pixels): they fit a processor's cache."""

_BATCH, _SMALLEST_TILE = 16, 16


class Segmenter:
    """A trained network that takes pictures of any size; `petseg.load` gives it.

    Args:
        trained: its network is on `device` already (`load_trained` puts it there).
        device: where it runs.
        amp: mixed precision, `auto`, `bf16`, `fp16` or `off`; None for what the device has if the run had any.
        tta: average with the mirrored picture (test-time augmentation), in twice the time.
        tile: short side of a tile, in the picture's pixels; each tile is squashed to the network's size. 0 squashes the
            whole picture, as in training.
        overlap: smallest share of a tile that its neighbour covers too, 0 to 0.9; there they fade into each other.

    Raises:
        PetsegError: it was trained on pictures decoded in a way that this petseg does not know; or an option out of
            range.

    Example:
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
        tile: int = 0,
        overlap: float = 0.25,
    ) -> None:
        if trained.decode_policy not in {"", "fancy-upsampling"}:
            raise PetsegError(
                f"{trained.path} was trained on pictures decoded by '{trained.decode_policy}', which this petseg does "
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
        self.tones = trained.tones
        self.network: nn.Module = trained.network
        self.height, self.width = trained.config.height_width
        self._trained = trained.mirrored() if tta else trained
        self._device = device
        self._amp = resolve_amp(cast(Amp, amp or ("off" if trained.config.amp == "off" else "auto")), device)
        self._tile, self._overlap = tile, overlap

    def __repr__(self) -> str:
        tile = f", tiles of {self._tile} px" if self._tile else ""
        return (
            f"Segmenter({str(self._trained.path)!r}, {self.classes}, size {self.height}x{self.width}{tile}, "
            f"on {self._device})"
        )

    def predict(self, picture: Picture) -> np.ndarray:
        """The mask of a picture at its own size: u8[H, W], codes as in the masks that the network learned from.

        Args:
            picture: path of a photo, a PIL image, or u8[H, W, 3] in RGB; upright, or with an EXIF orientation.

        Raises:
            PetsegError: it cannot be read, or is no picture.
        """
        return self.classes.to_codes(self.segment(as_pixels(picture, self.tones)))

    def probabilities(self, picture: Picture) -> np.ndarray:
        """Class probabilities of a picture at its own size, enlarged bilinearly: f32[C, H, W], in the classes' order.

        Args:
            picture: as for `predict`.

        Raises:
            PetsegError: it cannot be read, or is no picture.
        """
        pixels = as_pixels(picture, self.tones)
        found = np.empty((len(self.classes), *pixels.shape[:2]), np.float32)
        for rows, band in self.bands(pixels):
            found[:, rows] = band
        return found

    def segment(self, picture: np.ndarray) -> np.ndarray:
        """Class indices at the picture's own size, of the likeliest class (the first of several).

        Args:
            picture: u8[H, W, 3], RGB, upright.

        Returns:
            u8[H, W], values in [0, C).
        """
        mask = np.empty(picture.shape[:2], np.uint8)
        for rows, band in self.bands(picture):
            mask[rows] = likeliest(band)
        return mask

    def bands(self, picture: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Class probabilities at the picture's own size, some rows at a time: some MB, however big the picture.

        Args:
            picture: u8[H, W, 3], RGB, upright.

        Yields:
            The rows, and f32[C, len(rows), W] of them.
        """
        height, width = picture.shape[:2]
        scale = self._tile / min(self.height, self.width)
        down = _spans(height, round(scale * self.height), self._overlap)
        across = _spans(width, round(scale * self.width), self._overlap)
        found: dict[int, list[np.ndarray]] = {}
        step = max(1, BAND_VALUES // (len(self.classes) * width))
        for first in range(0, height, step):
            rows = slice(first, min(first + step, height))
            met = [n for n, span in enumerate(down) if span.start < rows.stop and rows.start < span.stop]
            tiles = {
                n: [picture[down[n].start : down[n].stop, span.start : span.stop] for span in across]
                for n in met
                if n not in found
            }
            found = {n: found[n] if n in found else self._at_network_size(tiles[n]) for n in met}
            if len(down) == len(across) == 1:
                yield rows, enlarge(found[0][0], height, width, rows)
                continue
            band = np.zeros((len(self.classes), rows.stop - rows.start, width), np.float32)
            for n in met:
                span = down[n]
                part = slice(max(rows.start, span.start) - span.start, min(rows.stop, span.stop) - span.start)
                into = slice(part.start + span.start - rows.start, part.stop + span.start - rows.start)
                for column, small in zip(across, found[n], strict=True):
                    large = enlarge(small, span.stop - span.start, column.stop - column.start, part)
                    large *= span.weights[part, None] * column.weights
                    band[:, into, column.start : column.stop] += large
            yield rows, band

    def at_network_size(self, picture: np.ndarray) -> np.ndarray:
        """Class probabilities at the network's size, f32[C, height, width], of a picture u8[H, W, 3].

        The picture is squashed by the resize that every loader is held to.
        """
        return self._at_network_size([picture])[0]

    def _at_network_size(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for first in range(0, len(pictures), _BATCH):
            part = pictures[first : first + _BATCH]
            small = np.empty((len(part), self.height, self.width, 3), np.uint8)
            for row, picture in enumerate(part):
                resize_image(picture, self.height, self.width, out=small[row])
            images = torch.from_numpy(small).to(self._device)
            found.extend(self._trained.probabilities(images, self._amp).contiguous().cpu().numpy())
        return found


def enlarge(probabilities: np.ndarray, height: int, width: int, rows: slice) -> np.ndarray:
    """Rows of a bilinear enlargement, as `F.interpolate(..., mode="bilinear", align_corners=False)` makes it.

    Args:
        probabilities: f32[C, h, w].
        height: rows of the whole result.
        width: columns of the whole result.
        rows: those that are wanted.

    Returns:
        f32[C, len(rows), width].
    """
    h = probabilities.shape[1]
    # Pixel centres, clamped at the rim.
    y = ((np.arange(rows.start, rows.stop) + 0.5) * h / height - 0.5).clip(0, h - 1)
    above = y.astype(np.intp)
    below = np.minimum(above + 1, h - 1)
    weight = (y - above).astype(np.float32)[:, None]
    large = np.empty((len(probabilities), len(y), width), np.float32)
    for plane, out in zip(probabilities, large, strict=True):
        band = plane[above] * (1 - weight) + plane[below] * weight
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
    """The pixels along one axis that a tile covers, and its weight in each: over all tiles they add up to 1."""

    start: int
    stop: int
    weights: np.ndarray


def _spans(length: int, tile: int, overlap: float) -> list[_Span]:
    """Tiles along an axis, evenly spread; one for all where they would be no smaller than that, or `tile` is 0."""
    tile = min(tile, length) or length
    count = 1 + math.ceil((length - tile) / max(1, math.floor(tile * (1 - overlap))))
    starts = np.linspace(0, length - tile, count).round().astype(int).tolist()
    ramp = np.minimum(np.arange(1, tile + 1), np.arange(tile, 0, -1)).astype(np.float32)
    total = np.zeros(length, np.float32)
    for start in starts:
        total[start : start + tile] += ramp
    return [_Span(start, start + tile, ramp / total[start : start + tile]) for start in starts]
