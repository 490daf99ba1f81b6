"""Statistics of a shard's samples, for the manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypedDict

import numpy as np

from petseg.classes import ClassTable
from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.histogram import histogram
from petseg.data.shards.thinning import Thin
from petseg.data.sources import Rejected
from petseg.errors import RefusedError

_VALUES = np.arange(256, dtype=np.int64)


@dataclass(kw_only=True, slots=True)
class ShardStats:
    """Statistics of a finished shard, for the manifest; whole numbers, so that the order of adding does not matter."""

    name: str
    """File name of the tar."""
    info: ShardInfo | None = None
    """None if every sample was rejected: then there is no file."""
    tag: str = ""
    """What the output says of the tar, where it tells its bytes from others."""
    rejected: list[Rejected] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the source's bytes by key, rejected samples too."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags that identify the source's bytes, by key (`Pair.tag`)."""
    bytes_in: int = 0
    pixels: int = 0
    channel_sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    channel_squares: list[int] = field(default_factory=lambda: [0, 0, 0])
    pixel_counts: dict[int, int] = field(default_factory=dict)
    max_height: int = 0
    max_width: int = 0
    progressive: int = 0
    kept: int = 0
    converted: int = 0
    palette: dict[int, tuple[int, int, int, str]] = field(default_factory=dict)
    """By code: the colour that palettes give it where their indices are the codes, and the first such mask."""
    looks: dict[str, str] = field(default_factory=dict)
    """By key: what the image looks like (`look_of`)."""
    thin: dict[int, Thin] = field(default_factory=dict)
    """By code: what making masks smaller left of it."""
    resumed: bool = False
    """It was written by an earlier run."""

    def add(
        self,
        pixels: np.ndarray,
        counts: np.ndarray,
        *,
        progressive: bool,
        kept: bool = False,
        converted: bool = False,
    ) -> None:
        """Count a sample: its image as loaders decode it, u8[H, W, 3], and its mask's pixels by code, i64[256]."""
        height, width = pixels.shape[:2]
        self.pixels += height * width
        for channel, occurring in enumerate(histogram(pixels)):
            self.channel_sums[channel] += int(occurring @ _VALUES)
            self.channel_squares[channel] += int(occurring @ _VALUES**2)
        for code in np.flatnonzero(counts).tolist():
            self.pixel_counts[code] = self.pixel_counts.get(code, 0) + int(counts[code])
        self.max_height = max(self.max_height, height)
        self.max_width = max(self.max_width, width)
        self.progressive += progressive
        self.kept += kept
        self.converted += converted

    def add_palette(self, colours: Mapping[int, tuple[int, int, int]], mask: str) -> None:
        """Note the colours of a palette whose indices were taken for codes.

        Raises:
            RefusedError: another mask has another colour for one of them.
        """
        for code, (red, green, blue) in colours.items():
            first = self.palette.setdefault(code, (red, green, blue, mask))
            if first[:3] != (red, green, blue):
                raise RefusedError(
                    f"the palettes of the masks disagree: index {code} is {first[:3]} in {first[3]} and "
                    f"{(red, green, blue)} in {mask}, so their indices are not codes: name the classes' colours in the "
                    "class map (`petseg classes` proposes them)."
                )

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> ShardStats:
        """The inverse of `to_bytes`.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        data = json.loads(text)
        data["info"] = ShardInfo(**data["info"]) if data["info"] else None
        data["rejected"] = [Rejected(**each) for each in data["rejected"]]
        data["palette"] = {int(code): tuple(found) for code, found in data["palette"].items()}
        data["thin"] = {int(code): tuple(found) for code, found in data["thin"].items()}
        data["pixel_counts"] = {int(code): n for code, n in data["pixel_counts"].items()}
        return cls(**data)


def mean_std(every: Sequence[ShardStats]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Channel means and standard deviations, 0 to 1, of exact sums: the same in any order of adding.

    A deviation is at least one step of 255, so that flat images can be divided by it.
    """
    n = max(1, sum(stats.pixels for stats in every))
    sums = [sum(stats.channel_sums[channel] for stats in every) for channel in range(3)]
    squares = [sum(stats.channel_squares[channel] for stats in every) for channel in range(3)]
    red, green, blue = (s / (255 * n) for s in sums)
    variances = ((n * q - s * s) / (255 * n) ** 2 for s, q in zip(sums, squares, strict=True))
    red2, green2, blue2 = (max(math.sqrt(variance), 1 / 255) for variance in variances)
    return (red, green, blue), (red2, green2, blue2)


def code_counts(every: Sequence[ShardStats], classes: ClassTable) -> dict[int, int]:
    """Mask pixels of every code that is known, also of those that never occur."""
    return {
        code: sum(stats.pixel_counts.get(code, 0) for stats in every) for code in (*classes.codes, *classes.ignored)
    }


class Totals(TypedDict):
    """What a manifest says of all samples."""

    max_height: int
    max_width: int
    pixel_counts: dict[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    progressive: int


def totals(every: Sequence[ShardStats], trained: Sequence[ShardStats], classes: ClassTable) -> Totals:
    """The statistics of all shards together.

    Args:
        every: shards, at least one.
        trained: those of train, whose means and deviations count; those of all where it is empty.
        classes: whose codes are counted.
    """
    mean, std = mean_std(trained or every)
    return Totals(
        max_height=max(stats.max_height for stats in every),
        max_width=max(stats.max_width for stats in every),
        pixel_counts=code_counts(every, classes),
        mean=mean,
        std=std,
        progressive=sum(stats.progressive for stats in every),
    )
