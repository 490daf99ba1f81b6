"""Pictures of any format by Pillow: upright, 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 178_956_970
"""Largest picture in pixels, judged by its header: Pillow's own limit for a decompression bomb (half a GiB as RGB)."""


def to_rgb(opened: Image.Image, *, upright: bool = True) -> np.ndarray:
    """Pixels of an opened picture, its first frame.

    Args:
        opened: any mode; 16 bits are cut to 8, transparency is laid over white.
        upright: turn it by its EXIF orientation.

    Returns:
        u8[H, W, 3], RGB.
    """
    image = ImageOps.exif_transpose(opened) if upright else opened
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image)
        # Mode I holds 16-bit grey too; what goes beyond 8 bits is cut to them, what does not is taken as it is.
        if grey.dtype != np.uint16:
            grey = np.clip(grey, 0, 65535).astype(np.uint16)
        if image.mode.startswith("I;16") or grey.max(initial=0) > 255:
            grey = grey >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.array(image.convert("RGB"))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A picture or mask turned upright by an EXIF orientation, 1 to 8 (anything else means upright): [H, W, ...]."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    # 5 transposes, 7 transposes across the other diagonal; 6 and 8 turn a quarter.
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
