"""Masks and overlays of any photo, at its own size."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from petseg.classes import ClassTable
from petseg.data.decode.pictures import MAX_SIDE, PictureError, check_whole, opened, to_rgb
from petseg.data.decode.resize import resize_image
from petseg.data.sources.files import IMAGES
from petseg.errors import PetsegError
from petseg.inference.trained import TrainedModel
from petseg.system import write_atomic

_BAND_PIXELS = 4_000_000
_NAMED_FAILURES = 5
_FILL = 0.45
_JPEG_QUALITY = 92


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What was written for one photo."""

    image: Path
    """The photo."""
    mask: Path
    """`NAME.png`, of the photo's upright size: the class codes, as indices of a palette of the classes' colours."""
    overlay: Path
    """`NAME_overlay.jpg`: the photo under the classes' colours."""
    shares: dict[str, float]
    """Share of the photo's pixels that each class takes, by name, 0 to 1."""


class Segmenter:
    """A trained network that takes pictures of any size; `petseg.load` gives it.

    Args:
        trained: its network is on `device` already (`load_trained` puts it there).
        device: where it runs.

    Raises:
        PetsegError: it was trained on pictures decoded in a way that this petseg does not know.

    Example:
        >>> pets = petseg.load("runs/mine")  # doctest: +SKIP
        >>> codes, probabilities = pets.predict("photo.jpg"), pets.probabilities("photo.jpg")  # doctest: +SKIP
    """

    def __init__(self, trained: TrainedModel, device: torch.device) -> None:
        if trained.decode_policy not in {"", "fancy-upsampling"}:
            raise PetsegError(
                f"{trained.path} was trained on pictures decoded by '{trained.decode_policy}', which this petseg does "
                "not know: upgrade petseg."
            )
        self.classes: ClassTable = trained.classes
        self.network: nn.Module = trained.network
        self.height, self.width = trained.config.height_width
        self._trained = trained
        self._device = device

    def predict(self, picture: Picture) -> np.ndarray:
        """The mask of a picture at its own size: u8[H, W], codes as in the masks that the network learned from.

        Args:
            picture: path of a photo, a PIL image, or u8[H, W, 3] in RGB; upright, or with an EXIF orientation.

        Raises:
            PetsegError: it cannot be read, or is no picture.
        """
        return self.classes.to_codes(self.segment(as_pixels(picture)))

    def probabilities(self, picture: Picture) -> np.ndarray:
        """Class probabilities of a picture at its own size, enlarged bilinearly: f32[C, H, W], in the classes' order.

        Args:
            picture: as for `predict`.

        Raises:
            PetsegError: it cannot be read, or is no picture.
        """
        pixels = as_pixels(picture)
        height, width = pixels.shape[:2]
        found = np.empty((len(self.classes), height, width), np.float32)
        for rows, band in enlarge(self.at_network_size(pixels), height, width):
            found[:, rows] = band.numpy()
        return found

    def at_network_size(self, picture: np.ndarray) -> torch.Tensor:
        """Class probabilities at the network's size, f32[C, height, width] on the CPU, of a picture u8[H, W, 3].

        The picture is squashed by the resize that every loader is held to.
        """
        small = np.ascontiguousarray(resize_image(picture, self.height, self.width))
        images = torch.from_numpy(small).unsqueeze(0).to(self._device)
        return self._trained.probabilities(images)[0].contiguous().cpu()

    def segment(self, picture: np.ndarray) -> np.ndarray:
        """Class indices at the picture's own size.

        The probabilities are enlarged bilinearly and the likeliest class is taken, a band of rows at a time: beside
        the result this needs some tens of MB, however big the picture.

        Args:
            picture: u8[H, W, 3], RGB, upright.

        Returns:
            u8[H, W], values in [0, C).
        """
        height, width = picture.shape[:2]
        mask = np.empty((height, width), dtype=np.uint8)
        for rows, band in enlarge(self.at_network_size(picture), height, width):
            mask[rows] = band.argmax(0).to(torch.uint8).numpy()
        return mask


Picture = Path | str | Image.Image | np.ndarray
"""A photo's path, or its pixels."""


def as_pixels(picture: Picture) -> np.ndarray:
    """u8[H, W, 3], RGB and upright, of a picture in any form.

    Raises:
        PetsegError: it cannot be read, or is no picture.
    """
    if isinstance(picture, Path | str):
        return read_photo(Path(picture).expanduser())
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        return picture
    what = f"{picture.dtype}{list(picture.shape)}" if isinstance(picture, np.ndarray) else type(picture).__name__
    raise PetsegError(f"a picture is a path, a PIL image or u8[H, W, 3], not {what}.")


def enlarge(
    probabilities: torch.Tensor, height: int, width: int, *, band_pixels: int = _BAND_PIXELS
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Bilinear enlargement, some rows at a time; together the bands equal `F.interpolate(..., mode="bilinear")`.

    Args:
        probabilities: f32[C, h, w], on the CPU.
        height: rows of the whole result.
        width: columns of the whole result.
        band_pixels: most values in one band (but at least one row of it).

    Yields:
        The rows, and f32[C, len(rows), width].
    """
    classes, h, _ = probabilities.shape
    step = max(1, band_pixels // (classes * width))
    for first in range(0, height, step):
        rows = slice(first, min(first + step, height))
        # Pixel centres, clamped at the rim: the convention of align_corners=False.
        y = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * h / height - 0.5
        y = y.clamp(0, h - 1)
        above = y.floor().long()
        weight = (y - above).float().view(1, -1, 1)
        below = (above + 1).clamp(max=h - 1)
        band = torch.lerp(probabilities[:, above], probabilities[:, below], weight)
        size = (rows.stop - rows.start, width)
        yield rows, F.interpolate(band.unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0]


def pictures_in(images: Sequence[Path]) -> list[Path]:
    """The photos that a command line means: files as they are, and for a folder the pictures directly in it.

    A folder's images are the files with a suffix that petseg packs, without dotfiles, sorted by name. A picture that is
    named twice counts once. Files are not opened, and need not exist.

    Raises:
        PetsegError: nothing was named, or a folder has no picture in it.
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
                raise PetsegError(f"{path} has no picture directly in it: give photos, or a folder of photos.")
        for one in chosen:
            found.setdefault(one.absolute(), one)
    if not found:
        raise PetsegError("no picture was named: give photos, or a folder of photos.")
    return list(found.values())


def predict(
    trained: TrainedModel,
    images: Sequence[Path],
    out: Path,
    *,
    device: torch.device,
    allow_damaged: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Write a mask and an overlay of every photo into `out`; a photo that cannot be read keeps no other waiting.

    Args:
        trained: a network on `device`.
        images: photos in any format that petseg packs, or folders of them (see `pictures_in`).
        out: folder, made if need be; `NAME.png` and `NAME_overlay.jpg` in it are replaced, nothing else is touched.
        device: where the network runs.
        allow_damaged: take photos of which a part is missing, too.
        progress: called with 1 after each photo.

    Returns:
        One entry a photo, in the order of `pictures_in`.

    Raises:
        PetsegError: before anything is written, two photos whose results would have one name, or a result that would
            replace a photo; at once, an `out` that cannot be written; after all others were done, the photos that
            could not be read, each with its reason.
    """
    photos = pictures_in(images)
    plan = _plan(photos, out)
    segmenter = Segmenter(trained, device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PetsegError(f"--out: {out} cannot be made ({error.strerror}); choose another folder.") from error
    done: list[Prediction] = []
    failed: list[str] = []
    for photo, (mask_path, overlay_path) in zip(photos, plan, strict=True):
        try:
            picture = read_photo(photo, allow_damaged=allow_damaged)
        except PetsegError as error:
            failed.append(str(error))
        else:
            mask = segmenter.segment(picture)
            _write(mask_path, _encode(in_colours(trained.classes.to_codes(mask), trained.classes), "PNG"))
            _write(overlay_path, _encode(Image.fromarray(overlay(picture, mask, trained.classes)), "JPEG"))
            counts = np.bincount(mask.ravel(), minlength=len(trained.classes)) / mask.size
            shares = {name: float(n) for name, n in zip(trained.classes.names, counts, strict=True)}
            done.append(Prediction(image=photo, mask=mask_path, overlay=overlay_path, shares=shares))
        if progress:
            progress(1)
    if failed:
        more = len(failed) - _NAMED_FAILURES
        hint = "; --allow-damaged takes what is damaged" if any(" is damaged (" in each for each in failed) else ""
        listed = "; ".join(failed[:_NAMED_FAILURES]) + (f"; and {more} more" if more > 0 else "")
        rest = f"; the other {len(done)} are in {out}" if done else ""
        raise PetsegError(f"{len(failed)} of {len(photos)} pictures could not be read: {listed}{rest}{hint}.")
    return done


def read_photo(path: Path, *, allow_damaged: bool = False) -> np.ndarray:
    """A photo, upright and in RGB.

    Args:
        path: a file of a format that petseg packs.
        allow_damaged: take one of which a part is missing, filled up by its decoder.

    Returns:
        u8[H, W, 3].

    Raises:
        PetsegError: one clause, without a full stop: no such file, no image, a part is missing, or too large (judged by
            the header, before anything is decoded).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PetsegError(f"no such file: {path}") from None
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror or error})") from error
    try:
        with opened(data, allow_damaged=allow_damaged) as picture:
            if max(picture.size) > MAX_SIDE:  # its overlay could not be written
                raise PictureError(f"is too large ({picture.width}x{picture.height})")
            if not allow_damaged:
                check_whole(data, picture)
            return to_rgb(picture)
    except PictureError as error:
        raise PetsegError(f"{path} {error}") from error


def overlay(picture: np.ndarray, mask: np.ndarray, classes: ClassTable) -> np.ndarray:
    """The classes' colours blended over a photo, with a thin light line between the classes.

    Args:
        picture: u8[H, W, 3], RGB; it is not changed.
        mask: u8[H, W], class indices.
        classes: colours by class index.

    Returns:
        u8[H, W, 3].
    """
    height, width = mask.shape
    result = picture.copy()
    tint = (_FILL * classes.palette()).astype(np.float32)
    reach = max(1, round(min(height, width) / 500))
    step = max(1, _BAND_PIXELS // (3 * width))
    for first in range(0, height, step):
        rows = slice(first, min(first + step, height))
        blended = result[rows] * np.float32(1 - _FILL) + tint[mask[rows]]
        # Rows beyond the band are looked at too, so that no seam shows where two bands meet.
        start = max(0, first - reach)
        line = _edges(mask[start : rows.stop + reach], reach)[first - start :][: blended.shape[0]]
        blended[line] = 0.25 * blended[line] + 0.75 * 255
        result[rows] = np.rint(blended).astype(np.uint8)
    return result


def _edges(mask: np.ndarray, reach: int) -> np.ndarray:
    """bool[H, W]: pixels with another class at most `reach` pixels below or to the right of them."""
    edges = np.zeros(mask.shape, dtype=bool)
    for shift in range(1, reach + 1):
        edges[:, :-shift] |= mask[:, :-shift] != mask[:, shift:]
        edges[:-shift] |= mask[:-shift] != mask[shift:]
    return edges


def _plan(photos: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    if out.exists() and not out.is_dir():
        raise PetsegError(f"--out: {out} is a file; give a folder.")
    plan = [(out / f"{photo.stem}.png", out / f"{photo.stem}_overlay.jpg") for photo in photos]
    inputs = {photo.resolve(): photo for photo in photos}
    owners: dict[str, Path] = {}
    for photo, results in zip(photos, plan, strict=True):
        for result in results:
            # Some file systems take Cat.png and cat.png for one file.
            other = owners.setdefault(result.name.casefold(), photo)
            if other != photo:
                raise PetsegError(f"{other} and {photo} would both be written to {result}: rename one of them.")
            replaced = inputs.get(out.resolve() / result.name)
            if replaced is not None:
                raise PetsegError(f"--out: {result} would replace the picture {replaced}; choose another folder.")
    return plan


def in_colours(codes: np.ndarray, classes: ClassTable) -> Image.Image:
    """A palette image whose pixels are the codes u8[H, W], and look like their classes; other codes are grey."""
    image = Image.fromarray(codes)
    palette = np.full((256, 3), 128, np.uint8)
    palette[list(classes.codes)] = classes.palette()
    image.putpalette(palette.ravel().tolist())
    return image


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, data)
    except OSError as error:
        raise PetsegError(
            f"--out: {path} could not be written ({error.strerror}); free some space or choose another folder."
        ) from error
