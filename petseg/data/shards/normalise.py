"""One sample made fit for a shard: an upright RGB JPEG and an 8-bit grey mask of its size, or a reason why not."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from petseg.classes import ClassTable
from petseg.data.decode.masks import GREY_AS_STORED, encode_mask
from petseg.data.decode.pictures import (
    MAX_PIXELS,
    MAX_SIDE,
    PictureError,
    check_whole,
    decode_jpeg,
    exif_orientation,
    opened,
    to_rgb,
    turned,
)
from petseg.data.decode.resize import resize_nearest, shrink_image

_HISTOGRAM_PIXELS = 1 << 24
# What a baseline or progressive decoder takes; the rest (lossless, arithmetic) is for libjpeg alone.
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2


class RejectError(Exception):
    """A sample that is left out; the text is one clause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What goes into a shard, and what the manifest counts."""

    image: bytes
    """JPEG, RGB, upright."""
    mask: bytes
    """8-bit grey PNG of the image's size."""
    height: int
    width: int
    pixel_counts: dict[int, int]
    """Mask pixels of each code that occurs."""
    channel_sums: tuple[int, int, int]
    """Sums of the image's values, 0 to 255 each."""
    channel_squares: tuple[int, int, int]
    """Sums of their squares."""
    progressive: bool
    """The image is a progressive JPEG that was kept."""
    kept: bool
    """The image's bytes are the source's own."""
    converted: bool
    """The source's image was no sound, upright RGB JPEG, so that it had to be encoded anew whatever its size."""


def normalise(
    image: bytes,
    mask: bytes,
    *,
    classes: ClassTable,
    short_side: int,
    quality: int,
    max_pixels: int = MAX_PIXELS,
) -> Sample:
    """Decode a pair in full, judge it, and encode it as shards hold it.

    Args:
        image: in any format of `pictures.FORMATS`.
        mask: one code a pixel: grey (1, 2, 4, 8 or 16 bits) or a palette whose indices are the codes.
        classes: codes that the mask may hold.
        short_side: reduce to this short side in pixels, never enlarge; 0 keeps the size, and the bytes of sound JPEGs.
        quality: of what is encoded here (baseline, 4:2:0).
        max_pixels: larger pictures are rejected by their header, before they are decoded.

    Raises:
        RejectError: damaged (also in part), too large, of an unknown kind, or a mask that does not fit.
    """
    pixels, orientation, keep = _decode_image(image, max_pixels)
    codes = _decode_mask(mask, max_pixels)
    converted = not keep
    stored = pixels.shape[:2]
    upright = stored[::-1] if orientation >= 5 else stored
    if codes.shape == stored:
        codes = turned(codes, orientation)
    elif codes.shape != upright:
        raise RejectError(
            f"mask is {codes.shape[1]}x{codes.shape[0]}, its image {stored[1]}x{stored[0]}"
            + (" (before it is turned upright)" if orientation > 1 else "")
        )
    counts = _histogram(codes)[0]
    unknown = sorted(set(np.flatnonzero(counts).tolist()) - {*classes.codes, *classes.ignored})
    if unknown:
        more = " ..." if len(unknown) > 5 else ""
        raise RejectError(f"mask holds unknown codes {', '.join(map(str, unknown[:5]))}{more}")
    pixels = turned(pixels, orientation)
    height, width = pixels.shape[:2]
    if 0 < short_side < min(height, width):
        scale = short_side / min(height, width)
        new = max(short_side, round(height * scale)), max(short_side, round(width * scale))
        pixels, codes = shrink_image(pixels, *new), resize_nearest(codes, *new)
        counts = _histogram(codes)[0]
        keep = False
    elif short_side:
        keep = False
    if not keep:
        if max(pixels.shape[:2]) > MAX_SIDE:
            raise RejectError(f"image has a side over {MAX_SIDE} px, more than a JPEG can have")
        image = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420"
        )
        # What loaders will see, so that the statistics are theirs.
        pixels = simplejpeg.decode_jpeg(image)
    sums, squares = _moments(pixels)
    return Sample(
        image=image,
        mask=encode_mask(codes),
        height=pixels.shape[0],
        width=pixels.shape[1],
        pixel_counts={int(code): int(counts[code]) for code in np.flatnonzero(counts)},
        channel_sums=sums,
        channel_squares=squares,
        progressive=keep and frame_marker(image) == _PROGRESSIVE,
        kept=keep,
        converted=converted,
    )


def frame_marker(jpeg: bytes) -> int | None:
    """The start-of-frame marker of a JPEG, which names its process: 0xC0 baseline, 0xC2 progressive; None without one.

    ITU-T T.81, table B.1.
    """
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            return marker
        else:
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return None


def _decode_image(data: bytes, max_pixels: int) -> tuple[np.ndarray, int, bool]:
    """(u8[H, W, 3] as stored, EXIF orientation 1 to 8, whether the bytes can be kept)."""
    try:
        with opened(data, max_pixels=max_pixels) as picture:
            orientation = exif_orientation(picture)
            if picture.format in {"JPEG", "MPO"} and picture.mode in {"RGB", "L"}:
                pixels, sound = decode_jpeg(data)
                # Grey JPEGs, images in images, foreign colour transforms and rare processes are encoded anew:
                # not every decoder agrees on them.
                plain = (
                    picture.format == "JPEG" and picture.mode == "RGB" and picture.info.get("adobe_transform", 1) == 1
                )
                rare = frame_marker(data) not in {_BASELINE, _EXTENDED, _PROGRESSIVE}
                return pixels, orientation, sound and plain and not rare and orientation == 1
            check_whole(data, picture)
            return to_rgb(picture, upright=False), orientation, False
    except PictureError as error:
        raise RejectError(f"image {error}") from error


def _decode_mask(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        with opened(data, max_pixels=max_pixels) as picture:
            if picture.format in {"JPEG", "MPO"}:
                raise PictureError("is a JPEG, which does not keep codes")
            if picture.mode not in {"1", "L", "P"} and not picture.mode.startswith("I"):
                raise PictureError(f"is {picture.mode}, not one code a pixel")
            check_whole(data, picture)
            if picture.format == "PNG" and picture.mode == "L":
                return _decode_grey_png(data, picture)
            values = np.asarray(picture)
    except PictureError as error:
        raise RejectError(f"mask {error}") from error
    if values.size and (values.min() < 0 or values.max() > 255):
        raise RejectError("mask holds codes over 255")
    return np.ascontiguousarray(values, dtype=np.uint8)


def _decode_grey_png(data: bytes, picture: Image.Image) -> np.ndarray:
    depth = data[24]
    if depth == 8:
        codes = cv2.imdecode(np.frombuffer(data, np.uint8), GREY_AS_STORED)  # in half of Pillow's time
        if codes is not None:
            return np.asarray(codes, dtype=np.uint8)
    # Pillow spreads 2 and 4 bits over 0 to 255; the codes are what was stored.
    values = np.asarray(picture)
    return values // (255 // ((1 << depth) - 1)) if depth < 8 else values


def _moments(pixels: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Sums and sums of squares of each channel, exact."""
    values = np.arange(256, dtype=np.int64)
    counts = _histogram(pixels)
    red, green, blue = (int(channel @ values) for channel in counts)
    red2, green2, blue2 = (int(channel @ values**2) for channel in counts)
    return (red, green, blue), (red2, green2, blue2)


def _histogram(pixels: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel of u8[H, W] or u8[H, W, C]: i64[C, 256]."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    total = np.zeros((channels, 256), np.int64)
    # OpenCV counts in float32, exact up to 2^24: hence the bands.
    step = max(1, _HISTOGRAM_PIXELS // (pixels.shape[1] + 1))
    for first in range(0, pixels.shape[0], step):
        band = pixels[first : first + step]
        for channel in range(channels):
            total[channel] += cv2.calcHist([band], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
    return total
