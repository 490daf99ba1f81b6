"""Images as people name them: files, folders, or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from petseg.data.decode.image_files import DAMAGED, MAX_SIDE, ImageError, opened, turned
from petseg.data.decode.images import Chroma
from petseg.data.decode.rgb import AS_IT_IS, Tones, decode_file, is_deep, to_rgb
from petseg.data.sources.files import IMAGES
from petseg.errors import DamagedError, PetsegError

ImageLike = Path | str | Image.Image | np.ndarray
"""An image's path, or its pixels."""


def as_pixels(image: ImageLike, tones: Tones = AS_IT_IS, chroma: Chroma = "fancy") -> np.ndarray:
    """u8[H, W, 3], RGB and upright, of an image in any form.

    Args:
        image: its path, or its pixels.
        tones: what becomes of more than 8 bits or three bands.
        chroma: how a JPEG of a path is decoded.

    Raises:
        PetsegError: it cannot be read, or is not an image.
    """
    if isinstance(image, Path | str):
        return read_image(Path(image).expanduser(), tones, chroma)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image, tones)
        except ImageError as error:
            raise PetsegError(f"the image {error}.") from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    what = f"{image.dtype}{list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
    raise PetsegError(f"an image is a path, a PIL image or u8[H, W, 3], not {what}.")


def images_in(images: Sequence[Path]) -> list[Path]:
    """The images that a command line means: files as they are, and for a folder the images directly in it.

    A folder's images are the files with a suffix that petseg packs, without dotfiles, sorted by name. An image that is
    named twice counts once. Files are not opened, and need not exist.

    Raises:
        PetsegError: nothing was named, or a folder has no image in it.
    """
    found: dict[Path, Path] = {}
    for path in images:
        chosen = [path]
        if path.is_dir():
            try:
                entries = sorted(path.iterdir())
            except OSError as error:
                raise PetsegError(f"{path} cannot be read ({error.strerror}).") from error
            chosen = [p for p in entries if p.suffix.lower() in IMAGES and not p.name.startswith(".") and p.is_file()]
            if not chosen:
                raise PetsegError(f"{path} has no image directly in it: give images, or a folder of images.")
        for one in chosen:
            found.setdefault(one.absolute(), one)
    if not found:
        raise PetsegError("no image was named: give images, or a folder of images.")
    return list(found.values())


def read_image(
    path: Path, tones: Tones = AS_IT_IS, chroma: Chroma = "fancy", *, allow_damaged: bool = False
) -> np.ndarray:
    """Read an image, upright and in RGB.

    Args:
        path: a file of a format that petseg packs.
        tones: what becomes of more than 8 bits or three bands.
        chroma: how a JPEG is decoded.
        allow_damaged: take one of which a part is missing, filled up by its decoder.

    Returns:
        u8[H, W, 3].

    Raises:
        DamagedError: a part is missing; one clause, without a full stop.
        PetsegError: one clause, without a full stop: no such file, no image, or too large (judged by
            the header, before anything is decoded).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PetsegError(f"no such file: {path}") from None
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror or error})") from error
    try:
        if allow_damaged and not is_deep(data):
            with opened(data, allow_damaged=True) as image:
                if max(image.size) > MAX_SIDE:
                    raise ImageError(f"is too large ({image.width}x{image.height})")
                return to_rgb(image, tones)
        found = decode_file(data, tones, chroma, max_side=MAX_SIDE)  # beyond that its overlay could not be written
        return turned(found.pixels, found.orientation)
    except ImageError as error:
        kind = DamagedError if error.kind == DAMAGED else PetsegError
        raise kind(f"{path} {error}") from error
