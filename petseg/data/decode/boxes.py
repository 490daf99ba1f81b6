"""Boxes: the part of an image that becomes a row of a batch, resized to the size of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import numpy as np

from petseg.data.decode.resize import nearest_indices, resize_image, resize_nearest
from petseg.data.order import hash_of
from petseg.errors import PetsegError

Kind = Literal["squash", "pad", "crop"]

OUTSIDE = 114
"""The grey of what lies outside an image, on all channels: YOLO's, near the mean of photographs."""

MOST_DRAWS = 10
"""Most boxes to draw until none of their classes takes too much of the box."""

_PURPOSE = 3
"""Purpose of these hashes, which keeps them apart from those of an epoch's order."""


class Box(NamedTuple):
    """A part of an image in its own pixels; it may reach beyond the image."""

    top: int
    left: int
    height: int
    width: int

    def inside(self, height: int, width: int) -> Box:
        """The part of the box that lies in an image; they must overlap."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.height, height), min(self.left + self.width, width)
        return Box(top, left, bottom - top, right - left)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How images become inputs of one size.

    `squash` takes the whole image, whatever its shape. `pad` takes the smallest box of the input's shape that the
    image fits into, in its middle. `crop` takes a box inside it, drawn anew in every epoch, of which no class takes
    more than a share (the `cat_max_ratio` of mmsegmentation's RandomCrop).

    Raises:
        ValueError: an option that is out of its range.

    Examples:
        >>> Fit(kind="crop", scale=(0.5, 2.0))
        Fit(kind='crop', scale=(0.5, 2.0), max_share=0.75)
    """

    kind: Kind = "squash"
    scale: tuple[float, float] = (0.5, 2.0)
    """crop: the image is enlarged by a factor from this range, evenly drawn, before the input is cut from it."""
    max_share: float = 0.75
    """crop: largest share of one class among the pixels that count, 0 to 1."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if self.kind not in get_args(Kind) or not 0 < low <= high <= 64 or not 0 < self.max_share <= 1:
            raise ValueError(f"there is no such fit: {self}")

    def __str__(self) -> str:
        if self.kind != "crop":
            return self.kind
        return f"crop {self.scale[0]:g} to {self.scale[1]:g}, {self.max_share:g} of a class"


SQUASH = Fit()


def as_fit(fit: Fit | str) -> Fit:
    """A fit as it is, or a kind of fit with its default options.

    Raises:
        PetsegError: there is no such kind.
    """
    if isinstance(fit, Fit):
        return fit
    if fit not in get_args(Kind):
        raise PetsegError(f"--fit: unknown value '{fit}'; choose {', '.join(get_args(Kind))}.")
    return Fit(kind=cast(Kind, fit))


class Framing(NamedTuple):
    """What the boxes of an epoch depend on, besides the images and their masks."""

    size: tuple[int, int]
    """(height, width) of the batch in pixels."""
    fit: Fit = SQUASH
    seed: int = 0
    epoch: int = 0
    codes: bytes = b""
    """The codes that are classes, for `crop`."""
    outside: int = 255
    """A code that is not a class, for what lies outside an image."""
    visits: tuple[int, ...] = ()
    """For each sample of a batch, its earlier visits in the epoch; empty if all are first visits."""


def whole(height: int, width: int) -> Box:
    """All of an image."""
    return Box(0, 0, height, width)


def padded(height: int, width: int, size: tuple[int, int]) -> Box:
    """The smallest box of a size's shape (rounded up to whole pixels) that an image fits into, in its middle."""
    box_height = max(height, -(-width * size[0] // size[1]))
    box_width = max(width, -(-height * size[1] // size[0]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def drawn(framing: Framing, index: int, draw: int, height: int, width: int) -> Box:
    """Box number `draw` of a sample's epoch, by a counter hash: of (seed, epoch, index, draw) and the image's size.

    Its sides are the batch's over a factor of `scale`, and every place where it lies in the image is as likely as any
    other; along an axis on which it is longer than the image, every place where the image lies in it.
    """
    scale, down, across = (hash_of(index, framing.seed, framing.epoch, _PURPOSE, draw, part) for part in range(3))
    low, high = framing.fit.scale
    factor = low + (high - low) * ((scale >> 11) * 2.0**-53)
    box_height, box_width = (max(1, round(side / factor)) for side in framing.size)
    return Box(_placed(down, height, box_height), _placed(across, width, box_width), box_height, box_width)


def _placed(chance: int, length: int, box: int) -> int:
    room = length - box
    place = (chance * (abs(room) + 1)) >> 64
    return place if room >= 0 else -place


def frame_mask(
    codes: np.ndarray, framing: Framing, index: int, out: np.ndarray | None = None
) -> tuple[Box, np.ndarray]:
    """A sample's box, and its codes at the size of the batch.

    Args:
        codes: u8[H, W], of the whole image.
        framing: which box, and how large a result.
        index: the sample's index in its split.
        out: u8[height, width], contiguous, to write into.

    Returns:
        (the box; u8[height, width], `out` where it was given).
    """
    fit, (height, width) = framing.fit, codes.shape
    if fit.kind == "squash":
        return whole(height, width), resize_nearest(codes, *framing.size, out=out)
    if fit.kind == "pad":
        box = padded(height, width, framing.size)
        return box, _boxed_codes(codes, box, framing, out)
    best: tuple[float, Box, np.ndarray] | None = None
    for draw in range(MOST_DRAWS):
        box = drawn(framing, index, draw, height, width)
        found = _boxed_codes(codes, box, framing, None)
        share = _largest_share(found, framing.codes)
        if best is None or share < best[0]:
            best = share, box, found
        if share < fit.max_share or fit.max_share == 1:
            break
    assert best is not None
    if out is None:
        return best[1:]
    out[:] = best[2]
    return best[1], out


def frame_image(image: np.ndarray, box: Box, size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """The part of an image that a box shows, at the size of the batch, `OUTSIDE` where there is no image.

    Args:
        image: u8[H, W, 3].
        box: in its pixels.
        size: (height, width) of the result.
        out: u8[height, width, 3], contiguous, to write into.

    Returns:
        u8[height, width, 3]; `out` where it was given.
    """
    part = box.inside(*image.shape[:2])
    return frame_part(
        image[part.top : part.top + part.height, part.left : part.left + part.width], part, box, size, out
    )


def frame_part(
    pixels: np.ndarray, part: Box, box: Box, size: tuple[int, int], out: np.ndarray | None = None
) -> np.ndarray:
    """`frame_image` of an image of which no more was decoded than what lies in the box.

    Args:
        pixels: u8[part height, part width, 3].
        part: what of the box lies in the image, in the same coordinates.
        box: see `frame_image`, as for the next two.
        size: (height, width) of the result.
        out: to write into.
    """
    if part == box:
        return resize_image(pixels, *size, out=out)
    # Along the axis that needs no canvas first: that of a long and narrow image would take gigabytes.
    if part.width == box.width:
        pixels = resize_image(pixels, part.height, size[1])
        part, box = (each._replace(left=0, width=size[1]) for each in (part, box))
    elif part.height == box.height:
        pixels = resize_image(pixels, size[0], part.width)
        part, box = (each._replace(top=0, height=size[0]) for each in (part, box))
    canvas = np.full((box.height, box.width, 3), OUTSIDE, np.uint8)
    top, left = part.top - box.top, part.left - box.left
    canvas[top : top + part.height, left : left + part.width] = pixels
    return resize_image(canvas, *size, out=out)


def _boxed_codes(codes: np.ndarray, box: Box, framing: Framing, out: np.ndarray | None) -> np.ndarray:
    height, width = codes.shape
    if box.inside(height, width) == box:
        return resize_nearest(
            codes[box.top : box.top + box.height, box.left : box.left + box.width], *framing.size, out=out
        )
    rows = nearest_indices(box.height, framing.size[0]) + box.top
    columns = nearest_indices(box.width, framing.size[1]) + box.left
    found = np.empty(framing.size, np.uint8) if out is None else out
    found[:] = framing.outside
    down, across = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    if down.any() and across.any():
        first, left = int(down.argmax()), int(across.argmax())
        taken = codes[rows[down]].take(columns[across], axis=1)
        found[first : first + taken.shape[0], left : left + taken.shape[1]] = taken
    return found


def _largest_share(codes: np.ndarray, classes: bytes) -> float:
    """Share of the largest class among the pixels that count; 2 if none count."""
    counts = np.bincount(codes.reshape(-1), minlength=256)[np.frombuffer(classes, np.uint8)]
    total = int(counts.sum())
    return int(counts.max()) / total if total else 2.0
