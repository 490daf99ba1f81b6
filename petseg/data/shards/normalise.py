"""One sample made fit for a shard: an upright RGB JPEG and an 8-bit grey mask of its size, or a reason why not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg

from petseg.classes import ClassTable
from petseg.data.decode.image_files import (
    MAX_PIXELS,
    MAX_SIDE,
    ImageError,
    exif_orientation,
    opened,
    turned,
)
from petseg.data.decode.masks import encode_mask
from petseg.data.decode.netpbm import encode_pixels
from petseg.data.decode.resize import resize_image, resize_nearest
from petseg.data.decode.rgb import AS_IT_IS, Tones, decode_file
from petseg.data.shards.histogram import histogram
from petseg.data.shards.mask_files import RejectError, codes_of, read_mask, united

# What a baseline or progressive decoder takes; the rest (lossless, arithmetic) is for libjpeg alone.
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2


SAME_SHAPE = 0.005
"""Largest difference of two aspect ratios, as a share, that are taken for one."""


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
    palette: dict[int, tuple[int, int, int]]
    """The colours of the mask's palette by code, where its indices were taken for codes."""
    codes: np.ndarray
    """The mask: u8[H, W]."""
    before: np.ndarray | None
    """The mask before it was made smaller, if it was."""
    converted: bool
    """The source's image was no sound, upright RGB JPEG, so that it had to be encoded anew whatever its size."""


def normalise(
    image: bytes,
    mask: bytes,
    *more_masks: bytes,
    classes: ClassTable,
    short_side: int,
    quality: int,
    encoding: str = "jpeg",
    mask_orientation: str = "auto",
    resize_masks: bool = False,
    tones: Tones = AS_IT_IS,
    max_pixels: int = MAX_PIXELS,
) -> Sample:
    """Decode a pair in full, judge it, and encode it as shards hold it.

    Args:
        image: in any format of `image_files.FORMATS`.
        mask: one value or one colour a pixel, as `codes_of` reads them.
        more_masks: further masks, of the first one's size, to be united with it (`united`).
        classes: codes that the mask may hold.
        short_side: reduce to this short side in pixels, never enlarge; 0 keeps the size, and the bytes of sound JPEGs.
        quality: of JPEGs that are encoded here (baseline, 4:2:0).
        encoding: `jpeg` with PNG masks, or `ppm` with PGM masks, which lose nothing and have nothing to decode.
        mask_orientation: `upright` or `stored`: how a mask was drawn that its size says nothing of, where its image is
            turned by an EXIF orientation.
        resize_masks: bring a mask of another size and the same shape to its image's size, by nearest.
        tones: what becomes of images of more than 8 bits or three bands.
        max_pixels: larger images are rejected by their header, before they are decoded.

    Raises:
        RejectError: damaged (also in part), too large, of an unknown kind, or a mask that does not fit.
    """
    pixels, orientation, keep = _decode_image(image, tones, max_pixels)
    jpeg = classes.reading.threshold is not None
    every = [codes_of(read_mask(each, max_pixels, jpeg=jpeg), classes) for each in (mask, *more_masks)]
    codes, indices = every[0] if len(every) == 1 else united(every, classes)
    converted = not keep
    stored = pixels.shape[:2]
    upright = stored[::-1] if orientation >= 5 else stored
    if codes.shape not in {stored, upright}:
        codes = _resized(codes, stored, upright, asked_for=resize_masks, orientation=orientation)
    if codes.shape == stored and (stored != upright or orientation == 1 or _drawn_as_stored(mask, mask_orientation)):
        codes = turned(codes, orientation)
    pixels = turned(pixels, orientation)
    height, width = pixels.shape[:2]
    before = None
    if 0 < short_side < min(height, width):
        scale = short_side / min(height, width)
        new = max(short_side, round(height * scale)), max(short_side, round(width * scale))
        before, pixels, codes = codes, resize_image(pixels, *new), resize_nearest(codes, *new)
        keep = False
    elif short_side:
        keep = False
    if encoding == "ppm":
        keep, pixels = False, np.ascontiguousarray(pixels)
        image, mask = encode_pixels(pixels), encode_pixels(codes)
    else:
        mask = encode_mask(codes)
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
        mask=mask,
        pixels=pixels,
        counts=histogram(codes)[0],
        progressive=keep and frame_marker(image) == _PROGRESSIVE,
        kept=keep,
        palette=indices,
        codes=codes,
        before=before,
        converted=converted,
    )


def _drawn_as_stored(mask: bytes, mask_orientation: str) -> bool:
    """Whether a mask whose size says nothing was drawn in the frame that its image is stored in."""
    with opened(mask) as drawn:
        if exif_orientation(drawn) != 1:
            return True
    if mask_orientation == "auto":
        raise RejectError(
            "mask fits its image before and after it is turned upright: give --mask-orientation upright or stored"
        )
    return mask_orientation == "stored"


def _resized(
    codes: np.ndarray, stored: tuple[int, ...], upright: tuple[int, ...], *, asked_for: bool, orientation: int
) -> np.ndarray:
    """A mask at the size of the upright image, or of the stored one, whichever has its shape."""
    rows, columns = codes.shape
    # Less than a pixel is what rounding to whole pixels leaves.
    same = [
        (height, width)
        for height, width in (upright, stored)
        if abs(columns * height / (rows * width) - 1) <= SAME_SHAPE or abs(columns * height / width - rows) < 1
    ]
    if same and asked_for:
        return resize_nearest(np.ascontiguousarray(codes), *same[0])
    raise RejectError(
        f"mask is {columns}x{rows}, its image {stored[1]}x{stored[0]}"
        + (" (before it is turned upright)" if orientation > 1 else "")
        + ("; --resize-masks brings masks of the same shape to their images' size" if same else ""),
        "mask of another size",
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


def _decode_image(data: bytes, tones: Tones, max_pixels: int) -> tuple[np.ndarray, int, bool]:
    """(u8[H, W, 3] as stored, EXIF orientation 1 to 8, whether the bytes can be kept)."""
    try:
        found = decode_file(data, tones, max_pixels=max_pixels)
    except ImageError as error:
        raise RejectError(f"image {error}", f"image {error.kind}") from error
    keep = found.plain and found.orientation == 1
    return found.pixels, found.orientation, keep and frame_marker(data) in {_BASELINE, _EXTENDED, _PROGRESSIVE}
