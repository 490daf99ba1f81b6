"""Sources of pairs of image and mask. Every source lists pairs and reads their bytes; none decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from petseg.classes import ClassTable

TRAINVAL = "trainval"
"""An official list's training part, of which a seeded tenth becomes `val`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One image and its mask, not yet read."""

    key: str
    """Name of the sample, `[A-Za-z0-9_-]+`, unique within its source."""
    image: str
    """Where the image is, in words (a path, or `TAR:MEMBER`); its source can read it."""
    mask: str
    """Where the mask is, likewise."""
    size: int
    """Bytes of image and mask together as they stand (0 where they are drawn)."""
    split: str | None = None
    """`trainval`, `train`, `val` or `test` where the source has an official split, else None."""
    more_masks: tuple[str, ...] = ()
    """Where further masks are that are united with the first."""
    tag: str = ""
    """What tells the bytes of these files from others without reading them; empty where nothing does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A sample that was left out, and why."""

    key: str
    """Its key, or its file name where it has no fit key."""
    reason: str
    """One clause, such as `image is truncated`."""

    kind: str = ""
    """What is wrong without its details, the same for all samples with that fault; empty where the reason has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOver:
    """Files that were not asked for: no fault of theirs, and no reject."""

    where: str
    """Their folder, or what they have in common."""
    files: int
    why: str
    """One clause, such as `image without a mask`."""
    example: str
    """One of them, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The contents of a source."""

    pairs: Sequence[Pair]
    """Sorted by key; `Pairs.of` makes them small."""
    rejected: tuple[Rejected, ...] = ()
    """Files that have no partner or no fit name, and why."""
    left_over: tuple[LeftOver, ...] = ()
    """What else is there."""
    rule: str = ""
    """What paired them, in words."""
    unlisted: tuple[str, ...] = ()
    """Keys of whole pairs that are on no list, where there are lists: no split takes them."""
    split_by: str = "lists"
    """What says who is in which split, where something does: `lists` or `folders`."""
    ignored: int = field(default=0)
    """Files passed over by name: `.mat`, `._*`, dotfiles."""


class Source(Protocol):
    """A place that pairs come from. Picklable: worker processes read from their own copy."""

    @property
    def name(self) -> str:
        """The name that was given for it, for messages."""
        ...

    @property
    def classes(self) -> ClassTable:
        """The codes that its masks hold."""
        ...

    def listing(self) -> Listing:
        """Find the pairs without decoding any.

        Raises:
            PetsegError: no such place, or nothing in it.
        """
        ...

    def read(self, pair: Pair) -> tuple[bytes, ...]:
        """Encoded bytes of the image, its mask and its further masks, as they stand in the source.

        Raises:
            OSError: the files went away or cannot be read.
        """
        ...

    def head(self, pair: Pair) -> tuple[bytes, bytes]:
        """The beginnings of image and first mask, with their headers in nearly all cases; or all of both.

        Raises:
            OSError: as `read`.
        """
        ...


@dataclass(frozen=True, slots=True)
class OverSource:
    """Base of sources that list another source's pairs in their own way."""

    inner: Source

    @property
    def name(self) -> str:
        """As the source's."""
        return self.inner.name

    @property
    def classes(self) -> ClassTable:
        """As the source's."""
        return self.inner.classes

    def read(self, pair: Pair) -> tuple[bytes, ...]:
        """As the source's."""
        return self.inner.read(pair)

    def head(self, pair: Pair) -> tuple[bytes, bytes]:
        """As the source's."""
        return self.inner.head(pair)
