"""The range of values of a set's images of more than 8 bits, which becomes 0 to 255 in all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from petseg.errors import PetsegError

_BINS = 1 << 16
_NEAR = 15 / 16
_TOPS = {"whole": (255.0, 1023.0, 4095.0, 16383.0, 65535.0), "float": (1.0, 255.0)}
"""Where scales of 8 to 16 bits, and of floats, end."""

_OUTER, _MOST_OUTSIDE = 0.1, 4
"""Percent of the values that are left out at both ends for the question whether a few of them decide the range."""


@dataclass(slots=True)
class Values:
    """What values images of more than 8 bits have; adding is exact, in any order."""

    low: float = np.inf
    high: float = -np.inf
    counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    """By the upper 16 bits of the values as float32, in ascending order: steps of less than 1% of a value."""
    first: dict[str, str] = field(default_factory=dict)
    """By kind, `whole` numbers or `float`: the first image by key."""

    def add(self, values: np.ndarray, key: str) -> None:
        """Count an image's values; what is not finite is left out."""
        kind = "float" if values.dtype.kind == "f" else "whole"
        flat = values.ravel()
        if kind == "float":
            flat = flat[np.isfinite(flat)]
        if not flat.size:
            return
        bits = flat.astype(np.float32).view(np.uint32)
        ordered = np.where(bits >> 31, ~bits, bits | 0x80000000) >> 16
        counts = np.bincount(ordered, minlength=_BINS)
        self.merge(Values(float(flat.min()), float(flat.max()), counts, {kind: key}))

    def merge(self, more: Values) -> None:
        """Add what was counted elsewhere."""
        for kind, key in more.first.items():
            self.first[kind] = min(key, self.first.get(kind, key))
        self.low, self.high = min(self.low, more.low), max(self.high, more.high)
        self.counts = self.counts + more.counts

    def percentile(self, share: float, *, upper: bool) -> float:
        """The value below which `share` percent of all lie, to 1% of it; the upper or lower end of its step."""
        at = int(np.searchsorted(np.cumsum(self.counts), share / 100 * self.counts.sum()))
        bits = np.uint32((min(at, _BINS - 1) << 16) | (0xFFFF if upper else 0))
        value = (bits & np.uint32(0x7FFFFFFF)) if bits >> 31 else ~bits
        return float(np.clip(np.asarray(value, np.uint32).view(np.float32), self.low, self.high))

    def between(self, low: float, high: float) -> tuple[float, float]:
        """From one percentile to another."""
        return _some(self.percentile(low, upper=False), self.percentile(high, upper=True))

    def range(self) -> tuple[float, float]:
        """From the least to the greatest value, or to 0 and the end of the scale where these are near.

        Raises:
            PetsegError: images of both kinds, or a few values that decide.
        """
        if len(self.first) > 1:
            one, other = sorted(self.first.values())
            raise PetsegError(
                f"{one} and {other} are of different kinds, one of whole numbers beyond 8 bits and one of floats, "
                "which cannot share one range: convert one kind."
            )
        ((kind, first),) = self.first.items()
        low, high = self.low, self.high
        if 0 <= low <= high * (1 - _NEAR):
            low = 0.0
        high = next((top for top in _TOPS[kind] if _NEAR * top <= high <= top), high)
        if kind == "whole" and self.low >= 0 and self.high <= 255:
            low, high = 0.0, 255.0
        inner = self.between(_OUTER, 100 - _OUTER)
        if _MOST_OUTSIDE * (inner[1] - inner[0]) < self.high - self.low:
            raise PetsegError(
                f"the values of {first} and images like it are {told_range(self.low, self.high)}, but nearly "
                f"all within {told_range(*inner)}: give --range LOW HIGH, such as --range p{_OUTER:g} "
                f"p{100 - _OUTER:g}, for what becomes black and white."
            )
        return _some(low, high)


def _some(low: float, high: float) -> tuple[float, float]:
    """A range, where all values may be one."""
    return (low, high) if low < high else (low, low + 1)


def told_range(low: float, high: float) -> str:
    """`0 to 4095`."""
    return f"{low:.6g} to {high:.6g}"


def parse_range(asked: Iterable[str]) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """(values, percentiles) of which one is None, of `LOW HIGH` or `pLOW pHIGH`.

    Raises:
        PetsegError: they are neither.
    """
    texts = tuple(asked)
    share = [text.startswith("p") for text in texts]
    try:
        low, high = (float(text.removeprefix("p")) for text in texts)
    except ValueError:
        low = high = np.nan
    if share[0] != share[1] or not low < high or not (np.isfinite(low) and np.isfinite(high)):
        raise PetsegError(
            f"--range {' '.join(texts)}: give two values, the lower first, such as 0 4095, or two percentiles such as "
            "p1 p99."
        )
    if not share[0]:
        return (low, high), None
    if low < 0 or high > 100:
        raise PetsegError(f"--range {' '.join(texts)}: percentiles are from p0 to p100.")
    return None, (low, high)


def parse_bands(text: str) -> tuple[int, ...]:
    """`(1, 2, 3)` of `1,2,3`; nothing of nothing.

    Raises:
        PetsegError: not one band or three.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if len(parts) not in {0, 1, 3} or not all(part.isdecimal() and int(part) for part in parts):
        raise PetsegError(f"--bands {text}: give three bands, such as 1,2,3, or one; the first is 1.")
    return tuple(map(int, parts))
