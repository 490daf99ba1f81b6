"""The one resize: antialiased bilinear for pictures, integer nearest for masks."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F


@functools.lru_cache(maxsize=4096)
def nearest_indices(n_in: int, n_out: int) -> np.ndarray:
    """Source positions of a nearest resize, `((2*i + 1) * n_in) // (2 * n_out)`: i64[n_out], read-only.

    Pixel centres mapped in integers, so that no two libraries can round a tie differently.
    """
    indices = ((2 * np.arange(n_out, dtype=np.int64) + 1) * n_in) // (2 * n_out)
    indices.setflags(write=False)
    return indices


def resize_nearest(codes: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """A mask at another size, every value one that stood in it.

    Args:
        codes: u8[H, W].
        height: rows of the result.
        width: columns of the result.
        out: u8[height, width] to write into.

    Returns:
        u8[height, width]; `out` where it was given.
    """
    if codes.shape != (height, width):
        rows, columns = nearest_indices(codes.shape[0], height), nearest_indices(codes.shape[1], width)
        codes = codes[rows[:, None], columns]
    if out is None:
        return codes
    out[:] = codes
    return out


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture at another size, squashed to it.

    torch's uint8 kernel computes Pillow's antialiased BILINEAR in the same fixed point with vector instructions: on
    real pets the two differ by 0.03 of 255 in the mean, and it takes a quarter to a half of Pillow's time and less
    than OpenCV's INTER_AREA, which differs by 1.3.

    Args:
        image: u8[H, W, 3].
        height: rows of the result.
        width: columns of the result.

    Returns:
        u8[height, width, 3].
    """
    if image.shape[:2] == (height, width):
        return image
    if not image.flags.writeable:  # torch warns of it, though nothing is written
        image = image.copy()
    # A permuted view is channels_last, which is what selects the fast kernel.
    picture = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
    small = F.interpolate(picture, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    result: np.ndarray = small[0].permute(1, 2, 0).numpy()
    return result


def resize_image_on_device(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`resize_image` for a picture u8[H, W, 3] on a GPU, whose kernels know floats only; u8[height, width, 3]."""
    if image.shape[:2] == (height, width):
        return image
    picture = image.permute(2, 0, 1).unsqueeze(0).float()
    small = F.interpolate(picture, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return small[0].permute(1, 2, 0).round_().clamp_(0, 255).to(torch.uint8)
