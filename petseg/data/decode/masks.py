"""Masks as shards hold them: 8-bit grey PNGs, written so that they inflate straight into rows; or PGMs."""

from __future__ import annotations

import struct

import cv2
import deflate
import numpy as np

from petseg.data.decode import netpbm
from petseg.data.decode.image_files import MAX_PIXELS, PNG_SIGNATURE, DecodeError

_START = PNG_SIGNATURE + b"\x00\x00\x00\rIHDR"
_GREY = b"\x08\x00\x00\x00\x00"
"""Bit depth 8, colour type 0 (grey), and the only compression, filter method and no interlacing (PNG, 11.2.2)."""

_HEAD = struct.Struct(">16s II 5s 4x I4s")
"""What stands before the data: `_START`, width, height, `_GREY`, a checksum, and the next chunk's size and kind."""


GREY_AS_STORED = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
"""How OpenCV is to decode a mask: PNGs may hold an EXIF orientation too, and a mask is turned as its image is."""

_LEVEL = 6
"""libdeflate's. Two more take a tenth off the bytes, and four times as long."""


def encode_mask(codes: np.ndarray) -> bytes:
    """An 8-bit grey PNG of unfiltered rows in a single chunk of data, from codes u8[H, W].

    PNG's filters are made for photographs: without them pets' trimaps become smaller and decode in a sixth of the time.
    """
    height, width = codes.shape
    rows = np.zeros((height, width + 1), np.uint8)  # a row begins with its filter: 0, none
    rows[:, 1:] = codes
    header = struct.pack(">II", width, height) + _GREY
    chunks = ((b"IHDR", header), (b"IDAT", bytes(deflate.zlib_compress(rows.tobytes(), _LEVEL))), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", deflate.crc32(kind + body))
        for kind, body in chunks
    )


def decode_mask(data: bytes | memoryview) -> np.ndarray:
    """Any 8-bit grey PNG, quickest where `encode_mask` wrote it, or PGM: u8[H, W], the codes as they stand.

    The result may be a view, read-only and not contiguous.

    Raises:
        DecodeError: it is damaged, too large, or not 8-bit grey (a palette's indices would come back as its greys).
    """
    if data[:2] == netpbm.MASK:
        return netpbm.decode_pixels(data, "mask")
    if len(data) < _HEAD.size:
        raise DecodeError("mask is not an 8-bit grey PNG")
    start, width, height, kind, size, chunk = _HEAD.unpack_from(data)
    # What decoders would silently convert: another bit depth or colour type.
    if start != _START or kind[:2] != _GREY[:2]:
        raise DecodeError("mask is not an 8-bit grey PNG")
    if not height * width:
        raise DecodeError("mask is damaged")
    if height * width > MAX_PIXELS:
        raise DecodeError(f"mask is too large ({width}x{height})")
    if chunk == b"IDAT" and kind == _GREY:
        mask = _inflated(data, size, height, width)
        if mask is not None:
            return mask
    try:
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), GREY_AS_STORED)
    except cv2.error as error:
        raise DecodeError("mask is damaged") from error
    if mask is None:
        raise DecodeError("mask is damaged")
    return np.asarray(mask, dtype=np.uint8)


def _inflated(data: bytes | memoryview, size: int, height: int, width: int) -> np.ndarray | None:
    """Rows that stand in one chunk of `size` bytes without filters; None where it is written in another way.

    Raises:
        DecodeError: the chunk's own checksum (Adler-32, RFC 1950) does not hold, or there is too little of it.
    """
    end = _HEAD.size + size
    if data[end + 8 : end + 12] == b"IDAT":
        return None
    expected = height * (width + 1)
    try:
        raw = deflate.zlib_decompress(data[_HEAD.size : end], expected)
    except deflate.DeflateError as error:
        raise DecodeError("mask is damaged") from error
    if len(raw) != expected:
        raise DecodeError("mask is damaged")
    if raw[:: width + 1] != bytes(height):
        return None
    return np.frombuffer(raw, np.uint8).reshape(height, width + 1)[:, 1:]
