"""Survey of the whole set before the first sample is packed: EXIF frames and ranges of values.

How masks are turned: an image may be stored turned, with an EXIF orientation that viewers follow. Its mask then was
drawn either on the upright image or in the stored frame. Where width and height change places, the mask's size says
which; where they do not, the other pairs of the set do.

The range of values: images of more than 8 bits become 8-bit by one range, not each by its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from petseg.data.decode.image_files import PNG_SIGNATURE, ImageError, exif_orientation, opened
from petseg.data.decode.rgb import Tones, chosen, is_deep, read_bands
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pool import Made, Report, Runner, run_jobs
from petseg.data.shards.ranges import Values
from petseg.data.sources import Pair, Source
from petseg.data.sources.stored import read_each
from petseg.errors import PetsegError

UPRIGHT, STORED, EITHER = "upright", "stored", "either"

_PAIRS_A_JOB = 256
_JOBS_ALONE = 16
"""Fewer are done before processes have started."""

_JPEG, _JPEG_EXIF = b"\xff\xd8", b"Exif\0\0"
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"Raw profile type APP1")


@dataclass(frozen=True, slots=True)
class Found:
    """What a number of pairs tell."""

    frames: dict[str, str]
    """For each kind of pair (`frame_of`), the first one's key."""
    values: Values
    """Of images of more than 8 bits."""


@dataclass(frozen=True, slots=True)
class SurveyWork:
    """Looks at the headers of pairs, and at the values of images of more than 8 bits."""

    source: Source
    frames: bool
    """Whether it is asked how masks are turned."""
    values: bool
    """Whether it is asked for values."""
    bands: tuple[int, ...]

    def __call__(self, job: Sequence[Pair], report: Report) -> Found:
        """What the job's pairs tell; those that cannot be read tell nothing, and packing will say so."""
        found = Found({}, Values())
        for pair, files in read_each(self._files, job):
            with contextlib.suppress(OSError, ImageError):
                self._look(pair, files(), found)
        report(0)
        return found

    def _files(self, pair: Pair) -> tuple[bytes, bytes]:
        """The headers of JPEGs; all of other files, which may be anywhere in them."""
        image, mask = self.source.head(pair)
        if image[:2] != _JPEG:
            image, mask, *_ = self.source.read(pair)
        return image, mask

    def _look(self, pair: Pair, files: tuple[bytes, bytes], found: Found) -> None:
        image, mask = files
        frame = ""
        if image[:2] == _JPEG:
            if not self.frames or _JPEG_EXIF not in image:
                return
            try:
                frame = frame_of(image, mask)
            except ImageError:  # a header may be longer than that
                image, mask, *_ = self.source.read(pair)
                frame = frame_of(image, mask)
        else:
            if self.values and is_deep(image):
                found.values.add(_deep_values(image, self.bands), pair.key)
            # Of a PNG that has none, Pillow would decode all to find that out.
            bare = image[: len(PNG_SIGNATURE)] == PNG_SIGNATURE and not any(word in image for word in _PNG_EXIF)
            if self.frames and not bare:
                frame = frame_of(image, mask)
        if frame:
            found.frames.setdefault(frame, pair.key)


def _deep_values(image: bytes, bands: tuple[int, ...]) -> np.ndarray:
    values = chosen(read_bands(image), Tones(bands=bands))
    return values if values.dtype != np.uint8 else values[:0]


def frame_of(image: bytes, mask: bytes) -> str:
    """In which frame a mask was drawn: `UPRIGHT`, `STORED` or `EITHER`; empty where they are one.

    Args:
        image: the file, or at least its header.
        mask: likewise.

    Raises:
        ImageError: a header cannot be read.
    """
    with opened(image) as header:
        orientation, stored = exif_orientation(header), header.size
    if orientation == 1:
        return ""
    with opened(mask) as drawn:
        size = drawn.size
        if stored[0] == stored[1] or orientation < 5:
            return STORED if exif_orientation(drawn) != 1 else EITHER
    if size[0] == size[1]:
        return ""  # of another shape than its image
    return STORED if (size[0] > size[1]) == (stored[0] > stored[1]) else UPRIGHT


def survey(
    source: Source, pairs: Sequence[Pair], options: PackOptions, *, workers: int, run: Runner = run_jobs
) -> PackOptions:
    """The options with `auto` settled: how masks are turned, and the range of values.

    `auto` stays where it makes no difference, and so does no range where no image has more than 8 bits.

    Args:
        source: where the pairs are.
        pairs: all of them, by key, so that the answer depends on the sources alone.
        options: what was asked for.
        workers: processes, at least 1.
        run: does what is worth more than one process.

    Raises:
        PetsegError: some masks can be read in both ways, and the others do not tell; or no one range holds.
    """
    work = SurveyWork(
        source, frames=options.mask_orientation == "auto", values=options.range is None, bands=options.bands
    )
    if not (work.frames or work.values):
        return options
    count = -(-len(pairs) // _PAIRS_A_JOB) if pairs and pairs[0].size else 0  # what is drawn is upright
    jobs = Made(lambda n: pairs[n * _PAIRS_A_JOB : (n + 1) * _PAIRS_A_JOB], count)
    first: dict[str, str] = {}
    values = Values()
    workers, run = (workers, run) if len(jobs) > _JOBS_ALONE else (1, run_jobs)
    for found in run(work, jobs, workers=workers, progress=lambda _: None):
        values.merge(found.values)
        for kind, key in found.frames.items():
            first[kind] = min(key, first.get(kind, key))
    if work.frames:
        options = replace(options, mask_orientation=_mask_orientation(first))
    if values.first:
        found_range = values.between(*options.percentiles) if options.percentiles else values.range()
        options = replace(options, range=found_range, percentiles=None)
    return replace(options, percentiles=None)


def _mask_orientation(first: dict[str, str]) -> str:
    if EITHER not in first:
        return "auto"
    if UPRIGHT in first and STORED in first:
        why = f"the mask of {first[UPRIGHT]} is drawn on the upright image, that of {first[STORED]} in the stored frame"
    elif UPRIGHT in first or STORED in first:
        return UPRIGHT if UPRIGHT in first else STORED
    else:
        why = "no other pair of the set tells"
    raise PetsegError(
        f"{first[EITHER]} is turned by its EXIF orientation, and its mask fits the upright image and the stored frame "
        f"alike ({why}): look at it, and give --mask-orientation upright (drawn on what a viewer shows) or stored."
    )
