"""Pixels as they are: binary PPM and PGM (Netpbm's P6 and P5) of 8 bits, with nothing to decode."""

from __future__ import annotations

import re

import numpy as np

from petseg.data.decode.image_files import MAX_PIXELS, DecodeError

_SPACE = rb"(?:[ \t\n\r\v\f]|#[^\n]*\n)+"
_HEADER = re.compile(rb"P([56])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"255[ \t\n\r\v\f]")
"""Kind, width, height, largest value, each followed by space or comments, and then one byte of space (ppm(5))."""

IMAGE, MASK = b"P6", b"P5"
"""How an image in RGB begins, and a mask in grey."""


def encode_pixels(pixels: np.ndarray) -> bytes:
    """A PPM of u8[H, W, 3], RGB, or a PGM of u8[H, W]."""
    kind = IMAGE if pixels.ndim == 3 else MASK
    return b"%s\n%d %d\n255\n" % (kind, pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


def decode_pixels(data: bytes | memoryview, what: str) -> np.ndarray:
    """A PPM, u8[H, W, 3], or a PGM, u8[H, W]: a view of `data`, read-only.

    Args:
        data: one that begins as `IMAGE` or `MASK`.
        what: `image` or `mask`, for messages.

    Raises:
        DecodeError: its header is damaged, it is too large, or its bytes are not as many as its pixels.
    """
    header = _HEADER.match(data)
    if header is None:
        raise DecodeError(f"{what} is damaged (it has no header of an 8-bit PPM or PGM)")
    width, height = int(header[2]), int(header[3])
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{what} is too large ({width}x{height})")
    shape = (height, width, 3) if header[1] == b"6" else (height, width)
    pixels = np.frombuffer(data, np.uint8, offset=header.end())
    if not pixels.size or pixels.size != np.prod(shape):
        raise DecodeError(f"{what} is damaged ({pixels.size} bytes for {width}x{height} pixels)")
    return pixels.reshape(shape)
