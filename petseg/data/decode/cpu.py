"""Decoding on the CPU, for shards: sound JPEGs and 8-bit grey PNGs that packing has already judged."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg


class DecodeError(Exception):
    """Bytes that are not the picture or mask that shards hold; one clause."""


def decode_image(data: bytes | memoryview) -> np.ndarray:
    """A JPEG in full, with libjpeg's fancy upsampling: u8[H, W, 3], RGB.

    Raises:
        DecodeError: it is damaged or no JPEG.
    """
    try:
        # strict: libjpeg's warnings are errors, or a truncated file would come back with its rest grey.
        image: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
    except ValueError as error:
        raise DecodeError(f"image is damaged ({error})") from error
    return image


def decode_mask(data: bytes | memoryview) -> np.ndarray:
    """An 8-bit grey PNG: u8[H, W], the codes as they stand.

    Raises:
        DecodeError: it is damaged, or not 8-bit grey (a palette's indices would come back as its greys).
    """
    # The header says what cv2 would silently convert: bit depth at byte 24, colour type at byte 25.
    if bytes(data[:8]) != b"\x89PNG\r\n\x1a\n" or bytes(data[24:26]) != b"\x08\x00":
        raise DecodeError("mask is no 8-bit grey PNG")
    try:
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        raise DecodeError("mask is damaged") from error
    if mask is None:
        raise DecodeError("mask is damaged")
    return np.asarray(mask, dtype=np.uint8)
