"""Decoding on the CPU, for shards: sound JPEGs and 8-bit grey PNGs that packing has already judged."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from petseg.data.decode.pictures import MAX_PIXELS, PNG_SIGNATURE


class DecodeError(Exception):
    """Bytes that are not the picture or mask that shards hold; one clause."""


def decode_image(data: bytes | memoryview) -> np.ndarray:
    """A JPEG in full, with libjpeg's fancy upsampling: u8[H, W, 3], RGB.

    Raises:
        DecodeError: it is damaged, too large or no JPEG.
    """
    check_image_header(data)
    try:
        # strict: libjpeg's warnings are errors, or a truncated file would come back with its rest grey.
        image: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        raise DecodeError(f"image is damaged ({error})") from error
    return image


def decode_mask(data: bytes | memoryview) -> np.ndarray:
    """An 8-bit grey PNG: u8[H, W], the codes as they stand.

    Raises:
        DecodeError: it is damaged, too large, or not 8-bit grey (a palette's indices would come back as its greys).
    """
    check_mask_header(data)
    try:
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        raise DecodeError("mask is damaged") from error
    if mask is None:
        raise DecodeError("mask is damaged")
    return np.asarray(mask, dtype=np.uint8)


def check_image_header(data: bytes | memoryview) -> None:
    """Refuse what is no JPEG, or one of more than `MAX_PIXELS`, before any pixel is decoded.

    Raises:
        DecodeError: see above.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DecodeError(f"image is damaged ({error})") from error
    if height * width > MAX_PIXELS:
        raise DecodeError(f"image is too large ({width}x{height})")


def check_mask_header(data: bytes | memoryview) -> None:
    """Refuse what is no 8-bit grey PNG, or one of more than `MAX_PIXELS`, before any pixel is decoded.

    Raises:
        DecodeError: see above.
    """
    # What decoders would silently convert: bit depth at byte 24, colour type at byte 25 (0: grey).
    if bytes(data[:8]) != PNG_SIGNATURE or bytes(data[24:26]) != b"\x08\x00":
        raise DecodeError("mask is no 8-bit grey PNG")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if height * width > MAX_PIXELS:
        raise DecodeError(f"mask is too large ({width}x{height})")
