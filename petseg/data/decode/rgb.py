"""Images of any kind as 8-bit RGB, also those of more bits or more bands."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from petseg.data.decode.image_files import (
    DAMAGED,
    MAX_PIXELS,
    PNG_SIGNATURE,
    TOO_LARGE,
    ImageError,
    check_whole,
    decode_jpeg,
    exif_orientation,
    one_page,
    opened,
    refuse_pages,
    tiff_pages,
    told,
)
from petseg.data.decode.images import Chroma

RGB_BANDS = (1, 2, 3)

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEEP_PNG = 16
_SHOWN_AS, _INKS = {0, 1, 2}, 5
"""TIFF 6.0, photometric interpretation: white is zero, black is zero, RGB; and CMYK."""

_FULL = {"u2": (0.0, 65535.0), "f4": (0.0, 1.0), "f8": (0.0, 1.0), "f2": (0.0, 1.0)}
"""What values span where nothing is known of a set, by NumPy's names of their types."""


@dataclass(frozen=True, slots=True)
class Tones:
    """How values become 0 to 255, and bands become red, green and blue; the same for all images of a set."""

    range: tuple[float, float] | None = None
    """Values of images of more than 8 bits that become 0 and 255; others are clipped. None: the type's own range."""
    bands: tuple[int, ...] = ()
    """Bands that become red, green and blue, or the one that becomes grey, counted from 1; what else there is is
    dropped. Empty: the only ones, with transparency laid over white."""

    def __bool__(self) -> bool:
        """Whether any of its fields is set."""
        return self.range is not None or bool(self.bands)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: the fields that are set."""
        data: dict[str, Any] = {}
        if self.range is not None:
            data["range"] = list(self.range)
        if self.bands:
            data["bands"] = list(self.bands)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tones:
        """The inverse of `to_dict`.

        Raises:
            ValueError, TypeError: it is none.
        """
        bands = tuple(int(band) for band in data.get("bands", ()))
        if len(bands) not in {0, 1, 3} or any(band < 1 for band in bands):
            raise ValueError(f"{bands} are not one band or three")
        if data.get("range") is None:
            return cls(None, bands)
        low, high = (float(value) for value in data["range"])
        if not -np.inf < low < high < np.inf:
            raise ValueError(f"{low} to {high} is not a range")
        return cls((low, high), bands)


AS_IT_IS = Tones()


class Bands(NamedTuple):
    """An image's values as they stand."""

    values: np.ndarray
    """Whole numbers or floats [H, W, B], as stored; B at least 1."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    transparency: bool
    """The last band is transparency."""


class DecodedImage(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray
    """u8[H, W, 3], RGB, as they are stored."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    plain: bool
    """It is an RGB JPEG with nothing to warn of, whose bytes every decoder takes for these pixels."""


def decode_file(
    data: bytes,
    tones: Tones = AS_IT_IS,
    chroma: Chroma = "fancy",
    *,
    max_pixels: int = MAX_PIXELS,
    max_side: int | None = None,
) -> DecodedImage:
    """Decode an image of which no part is missing.

    Args:
        data: the whole file.
        tones: what becomes of more bits and bands.
        chroma: how a JPEG is decoded.
        max_pixels: larger ones are refused by their header.
        max_side: longest side in pixels, likewise.

    Raises:
        ImageError: damaged, too large, of several pages or of a kind that is not read; or nothing says what its bands
            or values mean.
    """
    if is_deep(data):
        found = read_bands(data, max_pixels)
        _check_sides(found.values.shape[1::-1], max_side)
        return DecodedImage(rgb_of(found, tones), found.orientation, False)
    with opened(data, max_pixels=max_pixels) as image:
        _check_sides(image.size, max_side)
        one_page(image)
        orientation = exif_orientation(image)
        pixels, sound = whole_rgb(data, image, tones, chroma)
        # Grey JPEGs, images in images and foreign colour transforms are not decoded alike everywhere.
        plain = image.format == "JPEG" and image.mode == "RGB" and image.info.get("adobe_transform", 1) == 1
        return DecodedImage(pixels, orientation, sound and plain)


def _check_sides(size: tuple[int, ...], max_side: int | None) -> None:
    if max_side is not None and max(size) > max_side:
        raise ImageError(f"is too large ({size[0]}x{size[1]})", TOO_LARGE)


def whole_rgb(
    data: bytes, image: Image.Image, tones: Tones = AS_IT_IS, chroma: Chroma = "fancy"
) -> tuple[np.ndarray, bool]:
    """Pixels of an image of which no part is missing, as they are stored; a JPEG is decoded once.

    Args:
        data: the whole file.
        image: the same, opened.
        tones: what becomes of bands.
        chroma: how a JPEG is decoded.

    Returns:
        (u8[H, W, 3], RGB; whether it is a JPEG with nothing to warn of, and its bands are as they were).

    Raises:
        ValueError: a part is missing or altered.
        ImageError: it cannot be decided.
    """
    if image.format in {"JPEG", "MPO"} and image.mode in {"RGB", "L"}:
        pixels, sound = decode_jpeg(data, simple=chroma == "simple")
        if tones.bands in {(), RGB_BANDS}:
            return pixels, sound
        return rgb_of(Bands(pixels, 1, False), tones), False
    check_whole(data, image)
    return to_rgb(image, tones, upright=False), False


def to_rgb(image: Image.Image, tones: Tones = AS_IT_IS, *, upright: bool = True) -> np.ndarray:
    """Pixels of an opened image, its first frame.

    Args:
        image: opened, of any mode; transparency is laid over white.
        tones: what becomes of more bits and of bands.
        upright: turn it by its EXIF orientation.

    Returns:
        u8[H, W, 3], RGB.

    Raises:
        ImageError: nothing says what its bands or values mean.
    """
    image = ImageOps.exif_transpose(image) if upright else image
    if image.mode.startswith("I") or image.mode == "F":
        return rgb_of(Bands(np.asarray(image)[..., None], 1, False), tones)
    if tones.bands and image.mode in {"RGB", "RGBA"}:
        return rgb_of(Bands(np.asarray(image), 1, image.mode == "RGBA"), tones)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        if image.mode == "RGBA":
            _refuse_fourth_band(np.asarray(over)[..., 3])
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.array(image.convert("RGB"))


def _refuse_fourth_band(alpha: np.ndarray) -> None:
    """Refuse what is marked as transparency and varies like an image: near infrared, depth."""
    counts = np.bincount(alpha.ravel(), minlength=256)
    if 2 * (counts[0] + counts[-1]) < alpha.size:
        raise ImageError(
            "has a fourth band that is hardly transparency: give --bands 1,2,3 to take the first three, or save it "
            "without its alpha channel"
        )


def is_deep(head: bytes) -> bool:
    """Whether an image is for `read_bands` by its header; for TIFF, the whole file is needed.

    Raises:
        ImageError: a TIFF that cannot be read.
    """
    if head[: len(PNG_SIGNATURE)] == PNG_SIGNATURE:
        return head[24:25] == bytes([_DEEP_PNG])
    if head[:4] in _TIFF:
        with _tiff(head) as page:
            # The rest Pillow reads well.
            ink = page.samplesperpixel == 4 and int(page.photometric) == _INKS
            plain = page.samplesperpixel in {1, 3} or ink
            return not (plain and page.bitspersample <= 8 and page.sampleformat == 1)
    return head[:2] in {b"P2", b"P5"} and _depth_of_pgm(head) > 8


def read_bands(data: bytes, max_pixels: int = MAX_PIXELS) -> Bands:
    """The values of an image that `is_deep`, of which no part is missing.

    Raises:
        ImageError: damaged, too large, of several pages, or of a kind that is not read.
    """
    if data[:4] in _TIFF:
        return _read_tiff(data, max_pixels)
    with opened(data, max_pixels=max_pixels) as image:
        one_page(image)
        orientation = exif_orientation(image)
        check_whole(data, image)
        if image.format != "PNG":
            return Bands(np.asarray(image)[..., None], orientation, False)
        # Pillow cuts colours of 16 bits to 8; OpenCV keeps them, in the order BGR.
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        if values is None:
            raise ImageError("is damaged", DAMAGED)
    values = values if values.ndim == 3 else values[..., None]
    order = {1: [0], 2: [0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]
    # A grey image with transparency comes as colours.
    return Bands(values[..., order], orientation, values.shape[2] in {2, 4})


def chosen(found: Bands, tones: Tones) -> np.ndarray:
    """The bands of an image that count, without transparency: [H, W, 1 or 3].

    Raises:
        ImageError: they cannot be identified, or one is missing.
    """
    values = found.values
    count = values.shape[2]
    if tones.bands and count > 1:
        if max(tones.bands) > count:
            raise ImageError(f"has {count} bands, and --bands asks for band {max(tones.bands)}", "bands")
        return values[..., [band - 1 for band in tones.bands]]
    if found.transparency:
        count -= 1
    if count not in {1, 3}:
        raise ImageError(f"has {count} bands: give --bands, such as --bands 1,2,3, or --bands 1 for grey", "bands")
    return values[..., :count]


def rgb_of(found: Bands, tones: Tones = AS_IT_IS) -> np.ndarray:
    """An image's values as u8[H, W, 3], as they are stored.

    Raises:
        ImageError: nothing says which bands, or which range.
    """
    values = chosen(found, tones)
    eight = _to_8_bits(values, tones)
    if found.transparency and not tones.bands:
        alpha = found.values[..., -1:]
        share = alpha.astype(np.float32) / (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1)
        eight = np.rint(eight * share + 255 * (1 - share)).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(eight, 3, axis=2) if eight.shape[2] == 1 else eight)


def _to_8_bits(values: np.ndarray, tones: Tones) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    low, high = tones.range or _FULL.get(values.dtype.str[1:], (0.0, 0.0))
    outside = tones.range is None and values.dtype.kind == "f" and ((values < low) | (values > high)).any()
    if outside or not low < high:
        what = "beyond 0 to 1" if outside else f"of the type {values.dtype}"
        raise ImageError(f"has values {what}, and it is not known what becomes black and white: see --range", "range")
    if values.dtype == np.uint16 and (low, high) == _FULL["u2"]:
        return (values >> 8).astype(np.uint8)  # as cutting the lower byte always did
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0), 0, 255)).astype(np.uint8)


@contextlib.contextmanager
def _tiff(data: bytes) -> Iterator[Any]:
    """The first page of a TIFF; whatever goes wrong inside the block is an `ImageError`."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            yield file.pages[0]
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"is damaged ({told(error)[:120]})", DAMAGED) from error


def _read_tiff(data: bytes, max_pixels: int) -> Bands:
    with _tiff(data) as page:
        if page.imagewidth * page.imagelength > max_pixels:
            raise ImageError(f"is too large ({page.imagewidth}x{page.imagelength})", TOO_LARGE)
        refuse_pages(tiff_pages((each.tags.valueof(254, 0) for each in page.parent.pages), page.description))
        if int(page.photometric) not in _SHOWN_AS:
            raise ImageError(f"is a TIFF of the kind {page.photometric.name}, which is not supported: convert it")
        if any(at + n > len(data) for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise ImageError("is damaged (it ends before its last part)", DAMAGED)
        values = page.asarray()
        if page.samplesperpixel == 1:
            values = values[..., None]
        elif page.planarconfig == 2:
            values = np.moveaxis(values, 0, -1)
        if values.ndim != 3:
            raise ImageError("is a TIFF of more than two dimensions: save each image as a file of its own")
        if values.dtype.kind not in "iuf" and values.dtype != bool:
            raise ImageError(f"is a TIFF of the type {values.dtype}, which is not supported: convert it")
        if int(page.photometric) == 0 and values.dtype.kind == "u":
            values = np.iinfo(values.dtype).max - values
        marked = [int(kind) for kind in page.extrasamples]
        # GDAL marks a fourth band as transparency whatever it is; real transparency of maps is all or nothing.
        last = values[..., -1]
        most = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
        transparency = bool(marked and marked[-1] in {1, 2} and ((last == 0) | (last == most)).all())
        orientation = page.tags.valueof(274, 1)
        return Bands(values, orientation if orientation in range(2, 9) else 1, transparency)


def _depth_of_pgm(head: bytes) -> int:
    """Bits of a PGM's values (netpbm's pgm(5)); 8 where its header is damaged."""
    words: list[bytes] = []
    for line in head[2:512].split(b"\n"):
        words += line.partition(b"#")[0].split()
        if len(words) >= 3:
            break
    with_value = words[2:3]
    return int(with_value[0]).bit_length() if with_value and with_value[0].isdigit() else 8
