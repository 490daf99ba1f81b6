"""The one resize: antialiased bilinear for pictures, integer nearest for masks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:  # it takes seconds to import, and packing does without
    import torch


@functools.lru_cache(maxsize=4096)
def nearest_indices(n_in: int, n_out: int) -> np.ndarray:
    """Source positions of a nearest resize, `((2*i + 1) * n_in) // (2 * n_out)`: i64[n_out], read-only.

    Pixel centres mapped in integers, so that no two libraries can round a tie differently.
    """
    indices = ((2 * np.arange(n_out, dtype=np.int64) + 1) * n_in) // (2 * n_out)
    indices.setflags(write=False)
    return indices


@functools.lru_cache(maxsize=4096)
def _opencv_agrees(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether OpenCV's INTER_NEAREST_EXACT takes the positions of `nearest_indices`; for most sizes it does."""
    return _agrees(height, new_height) and _agrees(width, new_width)


def _agrees(n_in: int, n_out: int) -> bool:
    positions = np.arange(n_in, dtype=np.float32)[None]
    taken = cv2.resize(positions, (n_out, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    return bool((taken == nearest_indices(n_in, n_out)).all())


def resize_nearest(codes: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """A mask at another size, every value one that stood in it.

    Args:
        codes: u8[H, W].
        height: rows of the result.
        width: columns of the result.
        out: u8[height, width], contiguous, to write into.

    Returns:
        u8[height, width]; `out` where it was given.
    """
    old_height, old_width = codes.shape
    if _opencv_agrees(old_height, old_width, height, width):
        return cv2.resize(codes, (width, height), dst=out, interpolation=cv2.INTER_NEAREST_EXACT)
    rows, columns = nearest_indices(old_height, height), nearest_indices(old_width, width)
    return np.take(codes[rows], columns, axis=1, out=out, mode="clip")  # clip: numpy buffers `out` under "raise"


REACH = 5**0.5
"""Largest reduction that three taps of blur prepare for: the variance of [1, 1, 1] / 3 is 2/3 = (5 - 1) / 6."""

NO_BLUR = 1.75
"""Largest reduction by linear sampling alone, of images of up to `SMALL` pixels, such as packing makes."""

SMALL = 100_000
"""Larger images have finer detail, and take so long to decode that a blur hardly counts."""


@functools.lru_cache(maxsize=4096)
def _antialias(n_in: int, n_out: int) -> np.ndarray:
    """Taps f32[3] that make linear sampling at the step r = n_in / n_out an antialiased one.

    Pillow's BILINEAR weighs pixels by a triangle r wide to each side, of variance r^2 / 6 (in pixels squared); linear
    sampling by one of 1 / 6 at most. Variances of filters in a row add up, so three symmetric taps make up the rest.
    """
    missing = max((n_in / n_out) ** 2 - 1, 0) / 6
    return np.array([missing / 2, 1 - missing, missing / 2], np.float32)


def resize_image(image: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """A picture at another size, squashed to it: near Pillow's antialiased BILINEAR, as the loader contract asks.

    - Up to `NO_BLUR`, and when enlarging: OpenCV's linear sampling; on real pets 0.4 to 1.1 of 255 from Pillow in the
      mean (packed at 128, to 100 px: 1.0; at most 5 in any image), in a third of torch's time.
    - Up to `REACH`: the same after a blur of three taps; 0.4 to 0.8 (3.6), in two thirds of torch's time or less.
    - Beyond: torch's uint8 kernel, which computes the same as Pillow in fixed point; 0.03, in a quarter to a half of
      Pillow's time, and less than that of OpenCV's INTER_AREA.

    Args:
        image: u8[H, W, 3].
        height: rows of the result.
        width: columns of the result.
        out: u8[height, width, 3], contiguous, to write into.

    Returns:
        u8[height, width, 3]; `out` where it was given.
    """
    old_height, old_width = image.shape[:2]
    if (old_height, old_width) == (height, width):
        return _copied(image, out)
    reduction = max(old_height / height, old_width / width)
    if reduction <= REACH:
        if reduction > (NO_BLUR if old_height * old_width <= SMALL else 1):
            image = cv2.sepFilter2D(image, -1, _antialias(old_width, width), _antialias(old_height, height))
        return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    import torch
    import torch.nn.functional as F

    if not image.flags.writeable:  # torch warns of it, though nothing is written
        image = image.copy()
    # A permuted view is channels_last, which is what selects the fast kernel.
    picture = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
    small = F.interpolate(picture, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return _copied(small[0].permute(1, 2, 0).numpy(), out)


def shrink_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture u8[H, W, 3] at a smaller size of the same shape, for packing: u8[height, width, 3].

    Halved by the mean of 2x2 pixels (an odd last row or column is left out) until `resize_image` can do the rest
    without torch: 1.2 of 255 from Pillow on real pets, in a fifth of its time.
    """
    while min(image.shape[0] / height, image.shape[1] / width) > 2:
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        image = cv2.resize(image[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
    return resize_image(image, height, width)


def _copied(image: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return image
    out[:] = image
    return out


def resize_image_on_device(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`resize_image` for a picture u8[H, W, 3] on a GPU, whose kernels know floats only; u8[height, width, 3]."""
    import torch
    import torch.nn.functional as F

    if image.shape[:2] == (height, width):
        return image
    picture = image.permute(2, 0, 1).unsqueeze(0).float()
    small = F.interpolate(picture, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return small[0].permute(1, 2, 0).round_().clamp_(0, 255).to(torch.uint8)
