"""One sample made fit for a shard: an upright RGB JPEG and an 8-bit grey mask of its size, or a reason why not."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from petseg.classes import ClassTable
from petseg.data.decode.masks import GREY_AS_STORED, encode_mask
from petseg.data.decode.netpbm import encode_pixels
from petseg.data.decode.pictures import (
    MAX_PIXELS,
    MAX_SIDE,
    PictureError,
    check_whole,
    exif_orientation,
    opened,
    turned,
    whole_rgb,
)
from petseg.data.decode.resize import resize_image, resize_nearest
from petseg.data.shards.stats import histogram

# What a baseline or progressive decoder takes; the rest (lossless, arithmetic) is for libjpeg alone.
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2


UNKNOWN_CODES, NO_CLASS = "unknown codes", "which no class has"
"""What the reasons say where the class map is at fault."""


class RejectError(Exception):
    """A sample that is left out; the text is one clause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What goes into a shard, and what the manifest counts."""

    image: bytes
    """JPEG or PPM, RGB, upright."""
    mask: bytes
    """8-bit grey PNG or PGM of the image's size."""
    pixels: np.ndarray
    """The image as loaders will decode it: u8[H, W, 3]."""
    counts: np.ndarray
    """The mask's pixels by code: i64[256]."""
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
    encoding: str = "jpeg",
    max_pixels: int = MAX_PIXELS,
) -> Sample:
    """Decode a pair in full, judge it, and encode it as shards hold it.

    Args:
        image: in any format of `pictures.FORMATS`.
        mask: one code a pixel: grey (1, 2, 4, 8 or 16 bits) or a palette whose indices are the codes; or one of the
            classes' colours a pixel.
        classes: codes that the mask may hold.
        short_side: reduce to this short side in pixels, never enlarge; 0 keeps the size, and the bytes of sound JPEGs.
        quality: of JPEGs that are encoded here (baseline, 4:2:0).
        encoding: `jpeg` with PNG masks, or `ppm` with PGM masks, which lose nothing and have nothing to decode.
        max_pixels: larger pictures are rejected by their header, before they are decoded.

    Raises:
        RejectError: damaged (also in part), too large, of an unknown kind, or a mask that does not fit.
    """
    pixels, orientation, keep = _decode_image(image, max_pixels)
    codes = read_mask(mask, max_pixels)
    if codes.ndim == 3:
        codes = _codes_of(codes, classes)
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
    counts = histogram(codes)[0]
    unknown = sorted(set(np.flatnonzero(counts).tolist()) - {*classes.codes, *classes.ignored})
    if unknown:
        more = " ..." if len(unknown) > 5 else ""
        raise RejectError(f"mask holds {UNKNOWN_CODES} {', '.join(map(str, unknown[:5]))}{more}")
    pixels = turned(pixels, orientation)
    height, width = pixels.shape[:2]
    if 0 < short_side < min(height, width):
        scale = short_side / min(height, width)
        new = max(short_side, round(height * scale)), max(short_side, round(width * scale))
        pixels, codes = resize_image(pixels, *new), resize_nearest(codes, *new)
        counts = histogram(codes)[0]
        keep = False
    elif short_side:
        keep = False
    if encoding == "ppm":
        pixels = np.ascontiguousarray(pixels)
        return Sample(
            image=encode_pixels(pixels),
            mask=encode_pixels(codes),
            pixels=pixels,
            counts=counts,
            progressive=False,
            kept=False,
            converted=converted,
        )
    if not keep:
        if max(pixels.shape[:2]) > MAX_SIDE:
            raise RejectError(f"image has a side over {MAX_SIDE} px, more than a JPEG can have")
        image = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420"
        )
        # What loaders will see, so that the statistics are of that.
        pixels = simplejpeg.decode_jpeg(image)
    return Sample(
        image=image,
        mask=encode_mask(codes),
        pixels=pixels,
        counts=counts,
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
            pixels, sound = whole_rgb(data, picture)
            # Grey JPEGs, images in images, foreign colour transforms and rare processes are encoded anew: not every
            # decoder agrees on them.
            plain = picture.format == "JPEG" and picture.mode == "RGB" and picture.info.get("adobe_transform", 1) == 1
            keep = sound and plain and orientation == 1
            return pixels, orientation, keep and frame_marker(data) in {_BASELINE, _EXTENDED, _PROGRESSIVE}
    except PictureError as error:
        raise RejectError(f"image {error}") from error


def read_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A mask as it stands: codes u8[H, W] of one code a pixel, or colours u8[H, W, 3].

    Args:
        data: of any format of `pictures.FORMATS` but JPEG; grey of 1 to 16 bits, a palette (its indices are the codes),
            or RGB. An opaque alpha channel is passed over.
        max_pixels: larger masks are refused by their header.

    Raises:
        RejectError: damaged, too large, transparent, a JPEG, or codes over 255.
    """
    try:
        with opened(data, max_pixels=max_pixels) as picture:
            if picture.format in {"JPEG", "MPO"}:
                raise PictureError("is a JPEG, which does not keep codes")
            if picture.mode not in _MASK_MODES and not picture.mode.startswith("I"):
                raise PictureError(f"is {picture.mode}, neither one code nor one colour a pixel")
            check_whole(data, picture)
            if picture.format == "PNG":
                if picture.mode == "L":
                    return _decode_grey_png(data, picture)
                if data[24] == 16 and picture.mode in {"RGB", "RGBA", "LA"}:
                    raise PictureError("has colours of 16 bits: save it with 8")
            values = np.asarray(picture)
            if picture.mode in {"RGBA", "LA"}:
                if (values[..., -1] != 255).any():
                    raise PictureError("is transparent in part: save it without an alpha channel")
                values = values[..., :-1]
                values = values[..., 0] if picture.mode == "LA" else values
    except PictureError as error:
        raise RejectError(f"mask {error}") from error
    if values.size and (values.min() < 0 or values.max() > 255):
        raise RejectError("mask holds codes over 255")
    return np.ascontiguousarray(values, dtype=np.uint8)


_MASK_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}


def _codes_of(colours: np.ndarray, classes: ClassTable) -> np.ndarray:
    """Codes u8[H, W] of a mask in colours u8[H, W, 3]: by the classes' colours, or else grey that was saved as RGB."""
    known = sorted((packed_colours(np.array(rgb)).item(), code) for rgb, code in classes.code_of_colour().items())
    values, codes = np.array([(-1, 0), *known]).T  # the first is no colour's, so that there always is one
    packed = packed_colours(colours)
    places = np.searchsorted(values, packed).clip(max=len(values) - 1)
    unknown = values[places] != packed
    if not unknown.any():
        found: np.ndarray = codes.astype(np.uint8)[places]
        return found
    if (colours == colours[..., :1]).all():
        return np.ascontiguousarray(colours[..., 0])
    row, column = np.argwhere(unknown)[0].tolist()
    colour = tuple(colours[row, column].tolist())
    raise RejectError(f"mask holds the colour {colour} in column {column}, row {row}, {NO_CLASS}")


def packed_colours(colours: np.ndarray) -> np.ndarray:
    """RGB in one number: u8[..., 3] to i64[...]."""
    packed: np.ndarray = colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return packed


def _decode_grey_png(data: bytes, picture: Image.Image) -> np.ndarray:
    depth = data[24]
    if depth == 8:
        codes = cv2.imdecode(np.frombuffer(data, np.uint8), GREY_AS_STORED)  # in half of Pillow's time
        if codes is not None:
            return np.asarray(codes, dtype=np.uint8)
    # Pillow spreads 2 and 4 bits over 0 to 255; the codes are what was stored.
    values = np.asarray(picture)
    return values // (255 // ((1 << depth) - 1)) if depth < 8 else values
