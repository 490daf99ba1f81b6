"""Masks and overlays of a folder of images, each at its own size."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from PIL import Image

from petseg.classes import ClassTable
from petseg.data.decode.image_files import MAX_SIDE
from petseg.drawing import in_colours, legend, overlay
from petseg.errors import DamagedError, PetsegError
from petseg.inference.inputs import images_in, read_image
from petseg.inference.segment import Segmenter, likeliest
from petseg.system import started_threads, usable_cores, write_atomic

Probabilities = Literal["", "png", "npy"]
"""How probabilities are written, one file a class: not at all, as PNG of 16 bits (65535 is 1), or as NPY of f32."""

MOST_THREADS = 16
"""Each holds an image, and little is left to gain."""

_NAMED_FAILURES = 5
_JPEG_QUALITY = 92
_SMALLEST_TEXT = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The files written for one image."""

    image: Path
    """The image."""
    mask: Path
    """`NAME.png`, of the image's upright size: the class codes, as indices of a palette of the classes' colours."""
    overlay: Path
    """`NAME_overlay.jpg`: the image under the classes' colours, with a legend below it where there is room for one."""
    probabilities: tuple[Path, ...]
    """`NAME_pCODE.png` or `.npy` of each class, in the classes' order, where they were asked for."""
    shares: dict[str, float]
    """Share of the image's pixels that each class takes, by name, 0 to 1."""


def predict(
    segmenter: Segmenter,
    images: Sequence[Path],
    out: Path,
    *,
    probabilities: Probabilities = "",
    allow_damaged: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Write a mask and an overlay of every image into `out`; an image that cannot be read keeps no other waiting.

    Threads take an image each, from its file to its results.

    Args:
        segmenter: the network, and how it is used.
        images: images in any format that petseg packs, or folders of them (see `images_in`).
        out: folder, made if need be; an image's results in it are replaced, nothing else is touched.
        probabilities: write them too.
        allow_damaged: take images of which a part is missing, too.
        progress: called with 1 after each image, in the calling thread.

    Returns:
        One entry an image, in the order of `images_in`.

    Raises:
        PetsegError: before anything is written, two images whose results would have one name, or a result that would
            replace an image; at once, an `out` that cannot be written; after all others were done, the images that
            could not be read, each with its reason.
    """
    if probabilities not in get_args(Probabilities):
        raise PetsegError(f"--probabilities: unknown format '{probabilities}'; choose png or npy.")
    inputs = images_in(images)
    plan = [_results(image, out, segmenter.classes, probabilities) for image in inputs]
    _check(plan, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PetsegError(f"--out: {out} cannot be made ({error.strerror}); choose another folder.") from error

    def work(planned: _Results) -> Prediction | PetsegError:
        try:
            image = read_image(planned.image, segmenter.tones, segmenter.chroma, allow_damaged=allow_damaged)
        except PetsegError as error:
            return error
        return _predict_one(segmenter, image, planned)

    done: list[Prediction] = []
    failed: list[PetsegError] = []
    cores = usable_cores()
    threads = min(cores, len(plan), MOST_THREADS)
    pool = _quiet_threads(threads, cores // threads)
    try:
        for result in pool.map(work, plan):
            if isinstance(result, Prediction):
                done.append(result)
            else:
                failed.append(result)
            if progress:
                progress(1)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if failed:
        more = len(failed) - _NAMED_FAILURES
        hint = (
            "; --allow-damaged takes what is damaged" if any(isinstance(each, DamagedError) for each in failed) else ""
        )
        listed = "; ".join(map(str, failed[:_NAMED_FAILURES])) + (f"; and {more} more" if more > 0 else "")
        rest = f"; the other {len(done)} are in {out}" if done else ""
        raise PetsegError(f"{len(failed)} of {len(images)} images could not be read: {listed}{rest}{hint}.")
    return done


@dataclass(frozen=True, slots=True)
class _Results:
    """The names of what is to be written for an image."""

    image: Path
    mask: Path
    overlay: Path
    probabilities: tuple[Path, ...]


def _quiet_threads(threads: int, torch_threads: int) -> ThreadPoolExecutor:
    """Threads, all started, of which each computes on `torch_threads` threads in torch.

    `torch.set_num_threads` sets the calling thread's number and the one that every thread takes when it first computes:
    that may be the one that trains. So all threads of the pool are started here, and then it is set back.
    """
    before = torch.get_num_threads()
    pool = started_threads(threads, "petseg-predict", initializer=torch.set_num_threads, initargs=(torch_threads,))
    torch.set_num_threads(before)
    return pool


def _results(image: Path, out: Path, classes: ClassTable, probabilities: Probabilities) -> _Results:
    named = tuple(out / f"{image.stem}_p{code}.{probabilities}" for code in classes.codes) if probabilities else ()
    return _Results(image, out / f"{image.stem}.png", out / f"{image.stem}_overlay.jpg", named)


def _check(plan: Sequence[_Results], out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise PetsegError(f"--out: {out} is a file; give a folder.")
    inputs = {planned.image.resolve(): planned.image for planned in plan}
    folder = out.resolve()
    owners: dict[str, Path] = {}
    for planned in plan:
        for result in (planned.mask, planned.overlay, *planned.probabilities):
            # Some file systems take Cat.png and cat.png for one file.
            other = owners.setdefault(result.name.casefold(), planned.image)
            if other != planned.image:
                raise PetsegError(f"{other} and {planned.image} would both be written to {result}: rename one of them.")
            replaced = inputs.get(folder / result.name)
            if replaced is not None:
                raise PetsegError(f"--out: {result} would replace the image {replaced}; choose another folder.")


def _predict_one(segmenter: Segmenter, image: np.ndarray, planned: _Results) -> Prediction:
    classes = segmenter.classes
    mask = np.empty(image.shape[:2], np.uint8)
    kept: np.ndarray | None = None
    if planned.probabilities:
        kind = np.uint16 if planned.probabilities[0].suffix == ".png" else np.float32
        kept = np.empty((len(classes), *mask.shape), kind)
    for rows, band in segmenter.bands(image):
        mask[rows] = likeliest(band)
        if kept is not None:
            kept[:, rows] = np.rint(band.clip(0, 1) * 65535) if kept.dtype == np.uint16 else band
    shares = np.bincount(mask.ravel(), minlength=len(classes)) / mask.size
    for path, plane in zip(planned.probabilities, kept if kept is not None else (), strict=True):
        _write(path, _png16(plane) if plane.dtype == np.uint16 else _npy(plane))
    _write(planned.mask, _encode(in_colours(classes.to_codes(mask), classes), "PNG"))
    drawn = Image.fromarray(overlay(image, mask, classes))
    _write(planned.overlay, _encode(_with_legend(drawn, classes, shares), "JPEG"))
    return Prediction(
        image=planned.image,
        mask=planned.mask,
        overlay=planned.overlay,
        probabilities=planned.probabilities,
        shares={name: float(share) for name, share in zip(classes.names, shares, strict=True)},
    )


def _with_legend(drawn: Image.Image, classes: ClassTable, shares: np.ndarray) -> Image.Image:
    """The overlay with the classes found in it below, so that no pixel is hidden."""
    found = np.flatnonzero(shares).tolist()
    labels = [f"{classes.names[index]} {in_percent(shares[index])}" for index in found]
    text = max(_SMALLEST_TEXT, min(drawn.size) // 30)
    strip = legend(labels, [classes.colours[index] for index in found], drawn.width, text)
    if strip is None or drawn.height + strip.height > MAX_SIDE:
        return drawn
    both = Image.new("RGB", (drawn.width, drawn.height + strip.height))
    both.paste(drawn)
    both.paste(strip, (0, drawn.height))
    return both


def in_percent(share: float) -> str:
    """`37%`, and `<1%` for what is there but would round to nothing."""
    return f"{100 * share:.0f}%" if not 0 < share < 0.005 else "<1%"


def _png16(plane: np.ndarray) -> bytes:
    whole, data = cv2.imencode(".png", plane)
    assert whole
    return bytes(data)


def _npy(plane: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, plane, allow_pickle=False)
    return buffer.getvalue()


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
