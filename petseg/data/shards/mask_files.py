"""Mask files of any format: their values or colours, and the codes that a class map makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from petseg.classes import ClassTable
from petseg.data.decode.image_files import MAX_PIXELS, ImageError, check_whole, one_page, opened
from petseg.data.decode.masks import GREY_AS_STORED
from petseg.data.decode.rgb import whole_rgb
from petseg.data.shards.histogram import histogram

CLASS_MAP = "the class map does not fit"
"""Kind of the rejects whose masks hold what no class has."""
"""What the reasons say where the class map is at fault."""

Colour = tuple[int, int, int]


class RejectError(Exception):
    """A sample that is left out.

    Args:
        text: one clause.
        kind: what is wrong without its details, the same for all samples with that fault; default: the text.
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind or text


class RawMask(NamedTuple):
    """A mask as it stands in its file."""

    values: np.ndarray
    """u8[H, W], one value a pixel, or u8[H, W, 3], one colour a pixel."""
    palette: np.ndarray | None = None
    """u8[256, 3]: the colours of the values, where these are indices of a palette."""


def read_mask(data: bytes, max_pixels: int = MAX_PIXELS, *, jpeg: bool = False) -> RawMask:
    """Read a mask as it stands.

    Args:
        data: of any format of `image_files.FORMATS`; grey of 1 to 16 bits, a palette, or RGB. An opaque alpha channel
            is passed over.
        max_pixels: larger masks are refused by their header.
        jpeg: take JPEGs too, as shades of grey.

    Raises:
        RejectError: damaged, too large, transparent, of several pages, a JPEG unless asked for, or values over 255.
    """
    try:
        with opened(data, max_pixels=max_pixels) as image:
            one_page(image)
            if image.format in {"JPEG", "MPO"}:
                if not jpeg:
                    raise ImageError(
                        "is a JPEG, which does not keep codes: save it as PNG, or give threshold = 128 in a class map "
                        "of two classes"
                    )
                return RawMask(np.ascontiguousarray(cv2.cvtColor(whole_rgb(data, image)[0], cv2.COLOR_RGB2GRAY)))
            if image.mode not in _MODES and not image.mode.startswith("I"):
                raise ImageError(f"is {image.mode}, neither one code nor one colour a pixel")
            check_whole(data, image)
            palette = _palette(image)
            if image.format == "PNG":
                if image.mode == "L":
                    return RawMask(_decode_grey_png(data, image))
                if data[24] == 16 and image.mode in {"RGB", "RGBA", "LA"}:
                    raise ImageError("has colours of 16 bits: save it with 8")
            values = np.asarray(image)
            if image.mode in {"RGBA", "LA"}:
                if (values[..., -1] != 255).any():
                    raise ImageError("is transparent in part: save it without an alpha channel")
                values = values[..., :-1]
                values = values[..., 0] if image.mode == "LA" else values
    except ImageError as error:
        raise RejectError(f"mask {error}", f"mask {error.kind}") from error
    if values.size and (values.min() < 0 or values.max() > 255):
        raise RejectError("mask holds codes over 255")
    return RawMask(np.ascontiguousarray(values, dtype=np.uint8), palette)


def codes_of(mask: RawMask, classes: ClassTable) -> tuple[np.ndarray, dict[int, Colour]]:
    """The codes that a class map makes of a mask.

    By its threshold, where it has one; by its colours, for masks in colours, and for masks with a palette where it
    names colours; otherwise by value. A palette's values are its indices, but for a grey palette whose greys are codes
    and whose indices are not.

    Returns:
        (u8[H, W]; the palette's colours by code, where its indices were taken for codes).

    Raises:
        RejectError: a value or colour that no class has, or a palette that can be read in two ways.
    """
    values, palette = mask
    if classes.reading.threshold is not None:
        return _by_threshold(mask, classes, classes.reading.threshold), {}
    if values.ndim == 3:
        if (codes := _by_colour(values, classes)) is not None:
            return codes, {}
        values = np.ascontiguousarray(values[..., 0])
    taken: dict[int, Colour] = {}
    if palette is not None:
        occurring = _occurring(values)
        if classes.reading.by_colour:
            return _by_palette(values, occurring, palette, classes), {}
        values, as_indices = _indices_or_greys(values, occurring, palette, classes)
        if as_indices:
            taken = {int(index): _colour(palette[index]) for index in occurring}
    _refuse_unknown(values, classes)
    if classes.reading.values:
        values = classes.code_of_value().astype(np.uint8)[values]
    return values, taken


def united(
    masks: Sequence[tuple[np.ndarray, dict[int, Colour]]], classes: ClassTable
) -> tuple[np.ndarray, dict[int, Colour]]:
    """One mask of several that show one object or one class each.

    A pixel has the code that some mask gives it besides the background's: 0, or the first of the class map where it has
    no 0.

    Args:
        masks: as `codes_of` returns them.
        classes: the class map.

    Raises:
        RejectError: they differ in size, in a palette's colours, or about a pixel.
    """
    background = 0 if 0 in classes.codes else classes.codes[0]
    codes, palette = masks[0][0].copy(), dict(masks[0][1])
    for number, (more, colours) in enumerate(masks[1:], 2):
        if more.shape != codes.shape:
            raise RejectError(
                f"mask {number} of {len(masks)} is of another size than the first", "masks of several sizes"
            )
        for code, colour in colours.items():
            if palette.setdefault(code, colour) != colour:
                raise RejectError(
                    f"mask {number} of {len(masks)} has another palette than the first", "masks of several palettes"
                )
        shown = more != background
        doubt = shown & (codes != background) & (codes != more)
        if doubt.any():
            row, column = np.argwhere(doubt)[0].tolist()
            raise RejectError(
                f"masks disagree: in column {column}, row {row} they hold {codes[row, column]} and {more[row, column]}",
                "masks disagree",
            )
        codes[shown] = more[shown]
    return codes, palette


def packed_colours(colours: np.ndarray) -> np.ndarray:
    """RGB in one number: u8[..., 3] to i64[...]."""
    packed: np.ndarray = colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return packed


_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}


def _palette(image: Image.Image) -> np.ndarray | None:
    """u8[256, 3], or None where there is none."""
    if image.mode != "P":
        return None
    colours = np.zeros((256, 3), np.uint8)
    found = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colours[: len(found)] = found
    return colours


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = rgb.tolist()
    return red, green, blue


def _occurring(values: np.ndarray) -> np.ndarray:
    """The values that a mask u8[H, W] holds: i64[n], ascending."""
    return np.flatnonzero(histogram(values)[0])


def _refuse_unknown(values: np.ndarray, classes: ClassTable) -> None:
    occurring = _occurring(values)
    unknown = occurring[classes.code_of_value()[occurring] < 0].tolist()
    if not unknown:
        return
    more = " ..." if len(unknown) > 5 else ""
    soft = classes.codes == (0, 255) and not classes.ignored
    hint = "; are these soft edges? threshold = 128 in the class map takes them" if soft else ""
    raise RejectError(f"mask holds unknown codes {', '.join(map(str, unknown[:5]))}{more}{hint}", CLASS_MAP)


def _by_threshold(mask: RawMask, classes: ClassTable, threshold: int) -> np.ndarray:
    values = mask.values if mask.palette is None else mask.palette[mask.values]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise RejectError("mask is in colours, and the class map's threshold is for shades of grey")
        values = values[..., 0]
    return np.where(values >= threshold, classes.codes[1], classes.codes[0]).astype(np.uint8)


def _by_palette(values: np.ndarray, occurring: np.ndarray, palette: np.ndarray, classes: ClassTable) -> np.ndarray:
    known, table = classes.code_of_colour(), np.zeros(256, np.uint8)
    for index in occurring.tolist():
        colour = _colour(palette[index])
        code = known.get(colour, index if index in classes.ignored and not classes.ignored_colours else None)
        if code is None:
            raise RejectError(
                f"mask holds the colour {colour}, index {index} of its palette, which no class has: correct the class "
                "map's colours, or leave them out if the indices are the codes",
                CLASS_MAP,
            )
        table[index] = code
    codes: np.ndarray = table[values]
    return codes


def _indices_or_greys(
    values: np.ndarray, occurring: np.ndarray, palette: np.ndarray, classes: ClassTable
) -> tuple[np.ndarray, bool]:
    """(values, whether they are the indices)."""
    colours = palette[occurring]
    if (colours == colours[:, :1]).all():
        greys, meaning = colours[:, 0], classes.code_of_value()
        by_grey, by_index = (meaning[greys] >= 0).all(), (meaning[occurring] >= 0).all()
        if by_grey and by_index and (greys != occurring).any():
            raise RejectError(
                f"mask has a grey palette whose indices ({_listed(occurring)}) and greys ({_listed(greys)}) are both "
                "codes: name the classes' colours in the class map",
                "a grey palette",
            )
        if by_grey and not by_index:
            shades: np.ndarray = palette[:, 0][values]
            return shades, False
    return values, True


def _listed(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:5].tolist())) + (" ..." if len(values) > 5 else "")


def _by_colour(colours: np.ndarray, classes: ClassTable) -> np.ndarray | None:
    """Codes u8[H, W] of a mask u8[H, W, 3] by the classes' colours; None where it is grey that was saved as RGB."""
    known = sorted((packed_colours(np.array(rgb)).item(), code) for rgb, code in classes.code_of_colour().items())
    values, codes = np.array([(-1, 0), *known]).T  # the first is not a colour's, so that there always is one
    packed = packed_colours(colours)
    places = np.searchsorted(values, packed).clip(max=len(values) - 1)
    unknown = values[places] != packed
    if not unknown.any():
        found: np.ndarray = codes.astype(np.uint8)[places]
        return found
    if (colours == colours[..., :1]).all():
        return None
    row, column = np.argwhere(unknown)[0].tolist()
    colour = _colour(colours[row, column])
    raise RejectError(f"mask holds the colour {colour} in column {column}, row {row}, which no class has", CLASS_MAP)


def _decode_grey_png(data: bytes, image: Image.Image) -> np.ndarray:
    depth = data[24]
    if depth == 8:
        codes = cv2.imdecode(np.frombuffer(data, np.uint8), GREY_AS_STORED)  # in half of Pillow's time
        if codes is not None:
            return np.asarray(codes, dtype=np.uint8)
    # Pillow spreads 2 and 4 bits over 0 to 255; the codes are what was stored.
    values = np.asarray(image)
    return values // (255 // ((1 << depth) - 1)) if depth < 8 else values
