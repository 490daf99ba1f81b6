"""Images as shards hold them: JPEGs that packing has already judged, decoded on the CPU; or PPMs."""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
import simplejpeg

from petseg.data.decode import netpbm
from petseg.data.decode.image_files import MAX_PIXELS, DecodeError

Chroma = Literal["fancy", "simple"]
"""How a JPEG's colour, stored at half size, is enlarged: interpolated by a triangle filter, as libjpeg does by
default; or each value repeated."""

_POLICIES: dict[str, Chroma] = {"": "fancy", "fancy-upsampling": "fancy", "simple-upsampling": "simple"}

_PLAIN = struct.Struct(">6s 14x 4s 65x 4s 65x 5s HH")
_PLAIN_MARKERS = [b"\xff\xd8\xff\xe0\x00\x10", b"\xff\xdb\x00\x43", b"\xff\xdb\x00\x43", b"\xff\xc0\x00\x11\x08"]
"""How libjpeg begins a baseline JPEG: APP0, two tables, and the frame with height and width (ITU-T T.81, annex B).

Each segment's length says where the next one begins, so that nothing can hide between them. Looking at them here spares
a call that gives the interpreter's lock away and has to wait for it.
"""


def policy_of(chroma: Chroma) -> str:
    """The name of a decode policy, for checkpoints."""
    return f"{chroma}-upsampling"


def chroma_of(policy: str) -> Chroma | None:
    """The inverse of `policy_of`, also for checkpoints that name none; None for an unknown policy."""
    return _POLICIES.get(policy)


def decode_image(data: bytes | memoryview, chroma: Chroma = "fancy") -> np.ndarray:
    """A JPEG in full, by libjpeg-turbo, or a PPM: u8[H, W, 3], RGB; it may be a view, read-only.

    Raises:
        DecodeError: it is damaged, too large or neither.
    """
    if data[:2] == netpbm.IMAGE:
        return netpbm.decode_pixels(data, "image")
    check_image_header(data)
    try:
        # strict: libjpeg's warnings are errors, or a truncated file would come back with its rest grey.
        image: np.ndarray = simplejpeg.decode_jpeg(
            data, colorspace="RGB", fastdct=False, fastupsample=chroma == "simple"
        )
    except ValueError as error:
        raise DecodeError(f"image is damaged ({error})") from error
    return image


JPEG_END = b"\xff\xd9"


def check_encoded(data: bytes | memoryview) -> None:
    """Refuse an image that another decoder might accept silently.

    Raises:
        DecodeError: not a JPEG or PPM, too large, or its end is missing: DALI would fill it with grey.
    """
    if data[:2] == netpbm.IMAGE:
        netpbm.decode_pixels(data, "image")
        return
    check_image_header(data)
    if data[-2:] != JPEG_END:  # or something stands behind the image
        decode_image(data)


def check_image_header(data: bytes | memoryview) -> None:
    """Refuse what is not a JPEG, or one of more than `MAX_PIXELS`, before any pixel is decoded.

    Raises:
        DecodeError: see above.
    """
    if len(data) > _PLAIN.size:
        *markers, height, width = _PLAIN.unpack_from(data)
        if markers == _PLAIN_MARKERS and height * width <= MAX_PIXELS:
            return
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DecodeError(f"image is damaged ({error})") from error
    if height * width > MAX_PIXELS:
        raise DecodeError(f"image is too large ({width}x{height})")
