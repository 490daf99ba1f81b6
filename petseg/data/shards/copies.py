"""Copies of one image in two splits: found by what images look like, kept together by what their names share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from petseg.data.shards.plan import SPLITS
from petseg.data.sources.series import rows_of_parts

_SIDE, _STEP = 8, 2
_LEAST_BITS = 16
_NEAR = 6
"""Bits of 128 in which copies may differ. Of 500 Oxford pets, copies differ in 0 to 4 after another JPEG at 0.7 of the
size, and others in 21 or more."""

_BANDS = 8
_CROWD = 256
"""Images that agree in 16 bits with one are compared, so many at most."""

_MOST_COMPARED = 100_000

_PATTERNS = (
    r"^(.*?)[-_]rf[-_]",
    r"^(.*\d.*?)[-_](?=[^-_]*$)",
    r"(\d+)",
    r"(\d+)(?!.*\d)",
    r"^(.*?)[-_]?\d+$",
    r"^([^-_]+)",
)
"""What the names of copies may share: what Roboflow keeps, all but the last part, the first number, the last one, all
but a number at the end, the first part."""

_KEPT, _GROUPS = 0.9, 3
"""Share of the copies that an expression has to keep together, and groups that it has to leave at least."""


def look_of(pixels: np.ndarray) -> str:
    """A perceptual hash of an image: the signs of 128 differences of neighbours in a 9x9 thumbnail, plain and flipped.

    A difference hash (N. Krawetz, "Kind of like that", 2013) in both directions; differences of up to 2 of 255 count as
    none.

    Args:
        pixels: u8[H, W, 3].

    Returns:
        Hexadecimal, 32 digits for each of the image, its mirror image, and both upside down; empty for one with
        hardly anything on it.
    """
    height, width = (side // 2 for side in pixels.shape[:2])
    if min(height, width) > _SIDE:  # in a third of the time
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE + 1, _SIDE + 1), interpolation=cv2.INTER_AREA).astype(np.int16)
    ways = np.stack([small, small[:, ::-1], small[::-1], small[::-1, ::-1]])
    here = ways[:, :_SIDE, :_SIDE] + _STEP
    bits = np.stack([ways[:, :_SIDE, 1:] > here, ways[:, 1:, :_SIDE] > here], axis=1).reshape(4, -1)
    return "" if bits.sum(1).min() < _LEAST_BITS else np.packbits(bits, axis=1).tobytes().hex()


@dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """Images that stand in two splits."""

    pairs: tuple[tuple[str, str], ...]
    """Keys; the first one's split comes before the second one's."""
    splits: dict[tuple[str, str], int]
    """How many pairs stand in which two splits."""
    group: str | None
    """A regular expression for `--group` that keeps nearly all of them together, if there is one."""


_AUGMENTED = re.compile(r"(?:^|[-_])aug(?:s|mented|mentations?)?(?=[-_\d]|$)", re.IGNORECASE)
"""What says in a key that an image was made of another one."""


def _named_copies(split_of: Mapping[str, str]) -> set[tuple[str, str]]:
    """Pairs of keys in two splits of which one says that it was made of the other: `aug-image_3_1` of `image-3`.

    The other is the one that has the first part, or parts in a row, to itself that both have.
    """
    made = [key for key in split_of if _AUGMENTED.search(key)]
    of_part: dict[str, str | None] = {}
    for key in split_of.keys() - set(made) if made else ():
        for part, _, _ in rows_of_parts(key):
            of_part[part] = None if of_part.get(part, key) != key else key
    found: set[tuple[str, str]] = set()
    for key in made:
        rows = sorted(rows_of_parts(_AUGMENTED.sub("", key)), key=lambda row: (len(row[1]), -len(row[0])))
        other = next((of_part[part] for part, _, _ in rows if of_part.get(part)), None)
        if other is not None and split_of[other] != split_of[key]:
            one, two = sorted((other, key), key=lambda each: SPLITS.index(split_of[each]))
            found.add((one, two))
    return found


def find_copies(looks: Mapping[str, str], split_of: Mapping[str, str]) -> Copies | None:
    """Images that look alike, as they stand or flipped, or say that they were made of each other, in two splits.

    Of more than 100,000 images, those that look the same are found, and not those that nearly do.

    Args:
        looks: by key, see `look_of`.
        split_of: every sample's split by key.
    """
    keys = sorted(key for key, look in looks.items() if look)
    if not keys:
        return None
    bits = np.frombuffer(bytes.fromhex("".join(looks[key] for key in keys)), np.uint8).reshape(len(keys), 4, -1)
    splits = np.array([SPLITS.index(split_of[key]) for key in keys])
    found = _alike(bits, splits, near=_NEAR if len(keys) <= _MOST_COMPARED else 0)
    pairs = tuple(sorted({(keys[one], keys[other]) for one, other in found} | _named_copies(split_of)))
    if not pairs:
        return None
    counts = Counter((split_of[one], split_of[other]) for one, other in pairs)
    return Copies(pairs=pairs, splits=dict(sorted(counts.items())), group=group_for(pairs, list(split_of)))


def _alike(bits: np.ndarray, splits: np.ndarray, near: int) -> list[tuple[int, int]]:
    """Pairs of rows in two splits: one, in one of its four ways, differs from the other in `near` bits at most."""
    found: set[tuple[int, int]] = set()
    width = bits.shape[2] // _BANDS
    rows = np.arange(len(bits))
    for band in range(_BANDS if near else 1):
        part = slice(band * width, (band + 1) * width) if near else slice(None)
        plain = _numbers(bits[:, 0, part])
        order = np.argsort(plain, kind="stable")
        for way in range(4):
            wanted = _numbers(bits[:, way, part])
            first, last = (np.searchsorted(plain[order], wanted, side=side) for side in ("left", "right"))
            counts = np.minimum(last - first, _CROWD)
            one = np.repeat(rows, counts)
            places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
            other = order[places]
            ahead = splits[one] < splits[other]
            one, other = one[ahead], other[ahead]
            away = np.unpackbits(bits[one, way] ^ bits[other, 0], axis=1).sum(1, dtype=int)
            found |= set(zip(one[away <= near].tolist(), other[away <= near].tolist(), strict=True))
    return sorted(found)


def _numbers(part: np.ndarray) -> np.ndarray:
    """One comparable value a row of bytes."""
    return np.ascontiguousarray(part).view(f"S{part.shape[1]}").ravel()


def group_for(pairs: Sequence[tuple[str, str]], keys: Iterable[str]) -> str | None:
    """A regular expression that finds something in every key, and the same in both keys of nearly all pairs.

    Args:
        pairs: of keys that belong together.
        keys: of all samples.
    """
    every = list(keys)
    best: tuple[float, int, str] | None = None
    for pattern in _PATTERNS:
        groups = {key: _found(pattern, key) for key in every}
        if None in groups.values():
            continue
        kept = sum(groups[one] == groups[other] for one, other in pairs) / len(pairs)
        count = len(set(groups.values()))
        if kept >= _KEPT and count >= _GROUPS and (best is None or (kept, count) > best[:2]):
            best = kept, count, pattern
    return best[2] if best else None


def _found(pattern: str, key: str) -> str | None:
    match = re.search(pattern, key)
    return match[1] if match else None
