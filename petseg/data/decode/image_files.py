"""Image files of any format: opened by Pillow, whole or refused, turned upright."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator

import deflate
import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Largest image in pixels, judged by its header: Pillow's own limit for a decompression bomb (half a GiB as RGB)."""

MAX_SIDE = 65_500
"""Longest side in pixels that the JPEG library writes."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Formats to open, by Pillow's names (MPO comes with JPEG). Other plugins are not used: EPS would start Ghostscript."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 274
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class DecodeError(Exception):
    """Bytes that are not an image or mask as shards hold them; the text is one clause."""


class ImageError(Exception):
    """An image that cannot be used; the text is one clause.

    Args:
        text: a clause that its name goes before, such as `is damaged (...)`.
        kind: what is wrong without its details, the same for all images with that fault; default: the text.
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind or text


DAMAGED, TOO_LARGE = "damaged", "too large"
"""Kinds of faults."""


@contextlib.contextmanager
def opened(data: bytes, *, max_pixels: int = MAX_PIXELS, allow_damaged: bool = False) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong inside the block is an `ImageError`.

    Args:
        data: the whole file.
        max_pixels: larger images are refused by their header.
        allow_damaged: let Pillow fill up what is missing.

    Raises:
        ImageError: empty, of another format than `FORMATS`, too large, or damaged.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities that are judged here
            ImageFile.LOAD_TRUNCATED_IMAGES = allow_damaged
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ImageError(f"is too large ({image.width}x{image.height})", TOO_LARGE)
                yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        kinds = "JPEG, PNG, GIF, BMP, WebP, TIFF, PPM"
        raise ImageError(f"is of no known format ({kinds})" if data else "is empty") from None
    except Image.DecompressionBombError:
        raise ImageError(f"is too large (over {MAX_PIXELS} pixels)", TOO_LARGE) from None
    except MemoryError:
        raise  # that is not the image's fault
    except Exception as error:  # damaged bytes lead Pillow's plugins to raise nearly anything
        raise ImageError(f"is damaged ({told(error)})", DAMAGED) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def one_page(image: Image.Image) -> None:
    """Refuse a file of several images, of which only the first would be seen.

    A preview beside the image (a TIFF's reduced pages, what a phone puts behind a JPEG) is not one of several.

    Raises:
        ImageError: it holds several.
    """
    if image.format in {"JPEG", "MPO"}:
        return
    frames = getattr(image, "n_frames", 1)
    if image.format == "TIFF":
        kinds, description = [0], str(image.tag_v2.get(270, ""))  # type: ignore[attr-defined]
        if frames > 1:
            kinds = []
            for number in range(frames):
                image.seek(number)
                kinds.append(image.tag_v2.get(254, 0))  # type: ignore[attr-defined]
            image.seek(0)
        frames = tiff_pages(kinds, description)
    refuse_pages(frames)


def tiff_pages(kinds: Iterable[int], description: str) -> int:
    """How many images a TIFF holds.

    Args:
        kinds: tag 254 of every page (TIFF 6.0): those of reduced size and transparency masks do not count.
        description: tag 270. ImageJ writes a stack of any length as one page, and how long it is into here.
    """
    stack = re.search(r"^images=(\d+)", description, re.MULTILINE) if description.startswith("ImageJ=") else None
    return max(sum(not kind & 0b101 for kind in kinds), int(stack[1]) if stack else 1)


def refuse_pages(count: int) -> None:
    """Refuse more than one.

    Raises:
        ImageError: so it is.
    """
    if count > 1:
        raise ImageError(f"holds {count} pages: save each as a file of its own", "pages")


def told(error: Exception) -> str:
    """The text of an exception, on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def check_whole(data: bytes, image: Image.Image) -> None:
    """Refuse files with missing parts, which Pillow pads silently: JPEGs, PNGs and compressed TIFFs.

    Args:
        data: the whole file.
        image: the same, opened.

    Raises:
        ValueError: a part is missing or altered.
        ImageError: it cannot be decided.
    """
    if image.format in {"JPEG", "MPO"}:
        decode_jpeg(data, "CMYK" if image.mode == "CMYK" else "RGB")
    elif image.format == "PNG":
        _check_png(data)
    elif image.format == "TIFF":
        _check_tiff(data, image)


def decode_jpeg(data: bytes, colorspace: str = "RGB", *, simple: bool = False) -> tuple[np.ndarray, bool]:
    """Decode a JPEG by libjpeg-turbo, whose warnings are taken as errors.

    Args:
        data: the whole file.
        colorspace: of the result, by simplejpeg's names.
        simple: repeat colour that is stored at half size, in place of interpolating it.

    Returns:
        (u8[H, W, C]; whether there was nothing to warn of). A padded end is warned of and harmless.

    Raises:
        ValueError: damaged.
        ImageError: a chroma subsampling that libjpeg-turbo's strict decoder does not take.
    """
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, colorspace=colorspace, fastupsample=simple, strict=True)
    except ValueError as error:
        if "subsampling level" in str(error):
            raise ImageError(
                "has a rare chroma subsampling, which hides missing parts: save it again with common settings"
            ) from error
        extra = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(error))
        if not (extra and _is_padding(data, int(extra[1]))):
            raise
        pixels = simplejpeg.decode_jpeg(data, colorspace=colorspace, fastupsample=simple, strict=False)
        return pixels, False
    return pixels, True


def _is_padding(data: bytes, n: int) -> bool:
    """Whether `n` bytes of zeros (or of 0xFF) stand between the last byte of a scan and the end marker.

    A scan's last byte is filled up with ones (ITU-T T.81, F.1.2.3), so a zero before the zeros, unless it follows 0xFF
    as a stuffed byte, means that the scan itself was overwritten.
    """
    zeros = rb"(?:[^\x00]|\xff\x00)\x00{%d}\xff\xd9" % n
    return re.search(zeros + rb"|\xff{%d}\xff\xd9" % n, data, re.DOTALL) is not None


def _check_png(data: bytes) -> None:
    """Check the sums of all chunks, and that there are as many bytes of pixels as the header promises."""
    at, packed, header = len(PNG_SIGNATURE), [], b""
    while True:
        head = data[at : at + 8]
        if len(head) < 8:
            raise ValueError("it ends before its end chunk")
        size, kind = struct.unpack(">I4s", head)
        body = data[at + 8 : at + 8 + size]
        if data[at + 8 + size : at + 12 + size] != struct.pack(">I", zlib.crc32(head[4:] + body)):
            raise ValueError(f"the checksum of its {kind.decode('latin-1')} chunk does not hold")
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed.append(body)
        elif kind == b"IEND":
            break
        at += 12 + size
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _PNG_CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(math.ceil((width - x) / dx), math.ceil((height - y) / dy)) for x, y, dx, dy in passes]
    expected = sum(rows * (1 + math.ceil(columns * bits / 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    found = _inflated(b"".join(packed), expected)
    if found < expected:
        raise ValueError(f"it holds {100 * found // expected}% of its pixels")


def _inflated(data: bytes, limit: int) -> int:
    """Bytes that zlib data inflates to, counted up to `limit`."""
    with contextlib.suppress(deflate.DeflateError):  # for a stream that is whole, and no longer than that
        return len(deflate.zlib_decompress(data, limit))
    inflater, found = zlib.decompressobj(), 0
    while found < limit and not inflater.eof:
        part = inflater.decompress(data, 1 << 20)
        data = inflater.unconsumed_tail
        found += len(part)
        if not part and not data:
            break
    return found


def _check_tiff(data: bytes, image: Image.Image) -> None:
    """Decode every strip or tile of the first frame, for the compressions that libtiff decodes past gaps (TIFF 6.0)."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    compression = tags.get(259, 1)
    if compression in {1, 5, 32773}:  # none, LZW, PackBits: here a gap is an error of Pillow's
        return
    if compression not in {7, 8, 32946}:
        raise ImageError(
            f"is a TIFF compressed by {image.info.get('compression')}, which hides missing parts: "
            "save it again with another compression"
        )
    tiled = 324 in tags
    offsets, counts = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    rows = tags[323] if tiled else min(tags.get(278, image.height), image.height)
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        part = data[offset : offset + count]
        if compression != 7:
            zlib.decompress(part)
            continue
        tables = tags.get(347, b"")
        pixels, _ = decode_jpeg(tables[:-2] + part[2:] if tables else part)
        down = math.ceil(image.height / rows)
        wanted = rows if tiled else min(rows, image.height - number % down * rows)
        if pixels.shape[0] < wanted:
            raise ValueError(f"part {number + 1} has {pixels.shape[0]} rows instead of {wanted}")


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 2 to 8; 1 (upright) where there is none or none that makes sense."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing about the image
        return 1
    return value if isinstance(value, int) and 2 <= value <= 8 else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An image or mask turned upright by an EXIF orientation, 1 to 8 (anything else means upright): [H, W, ...]."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    # 5 transposes, 7 transposes across the other diagonal; 6 and 8 turn a quarter.
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
