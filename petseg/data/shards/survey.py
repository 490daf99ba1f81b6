"""What only the whole set can tell, found before the first sample is packed: whether masks are turned as images are.

A photo may be stored turned, with an EXIF orientation that viewers follow. Its mask then was drawn either on the
upright image or in the stored frame. Where width and height change places, the mask's size says which; where they do
not, the other pairs of the set do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from petseg.data.decode.pictures import PNG_SIGNATURE, PictureError, exif_orientation, opened
from petseg.data.shards.pool import Report, run_jobs
from petseg.data.sources import Pair, Source
from petseg.errors import PetsegError

UPRIGHT, STORED, EITHER = "upright", "stored", "either"

_PAIRS_A_JOB = 256
_JOBS_ALONE = 16
"""Fewer are done before processes have started."""

_JPEG, _JPEG_EXIF = b"\xff\xd8", b"Exif\0\0"
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"Raw profile type APP1")


@dataclass(frozen=True, slots=True)
class SurveyWork:
    """Looks at the headers of pairs."""

    source: Source

    def __call__(self, job: Sequence[Pair], report: Report) -> dict[str, str]:
        """For each kind of pair among the job's, the first one's key."""
        found: dict[str, str] = {}
        for pair in job:
            with contextlib.suppress(OSError, PictureError):  # packing will say so
                kind = self._frame(pair)
                if kind:
                    found.setdefault(kind, pair.key)
        report(0)
        return found

    def _frame(self, pair: Pair) -> str:
        image, mask = self.source.head(pair)
        if image[:2] == _JPEG and _JPEG_EXIF not in image:
            return ""
        if image[:2] == _JPEG:
            with contextlib.suppress(PictureError):  # a header may be longer than that
                return frame_of(image, mask)
        image, mask, *_ = self.source.read(pair)
        if image[: len(PNG_SIGNATURE)] == PNG_SIGNATURE and not any(word in image for word in _PNG_EXIF):
            return ""  # Pillow would decode it to find that out
        return frame_of(image, mask)


def frame_of(image: bytes, mask: bytes) -> str:
    """In which frame a mask was drawn: `UPRIGHT`, `STORED` or `EITHER`; empty where they are one.

    Args:
        image: the file, or at least its header.
        mask: likewise.

    Raises:
        PictureError: a header cannot be read.
    """
    with opened(image) as picture:
        orientation, stored = exif_orientation(picture), picture.size
    if orientation == 1:
        return ""
    with opened(mask) as drawn:
        size = drawn.size
        if stored[0] == stored[1] or orientation < 5:
            return STORED if exif_orientation(drawn) != 1 else EITHER
    if size[0] == size[1]:
        return ""  # of another shape than its image
    return STORED if (size[0] > size[1]) == (stored[0] > stored[1]) else UPRIGHT


def mask_orientation(source: Source, pairs: Sequence[Pair], asked: str, *, workers: int) -> str:
    """`UPRIGHT` or `STORED`, as the masks of a set are drawn; `auto` where it makes no difference.

    Args:
        source: where the pairs are.
        pairs: all of them, so that the answer depends on the sources alone.
        asked: what was asked for; `auto` looks.
        workers: processes, at least 1.

    Raises:
        PetsegError: some masks can be read in both ways, and the others do not tell.
    """
    if asked != "auto":
        return asked
    real = sorted((pair for pair in pairs if pair.size), key=lambda pair: pair.key)  # what is drawn is upright
    jobs = [tuple(real[first : first + _PAIRS_A_JOB]) for first in range(0, len(real), _PAIRS_A_JOB)]
    first: dict[str, str] = {}
    workers = workers if len(jobs) > _JOBS_ALONE else 1
    for found in run_jobs(SurveyWork(source), jobs, workers=workers, progress=lambda _: None):
        for kind, key in found.items():
            first[kind] = min(key, first.get(kind, key))
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
