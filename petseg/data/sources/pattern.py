"""`--pair`: where images are and where their masks are, as two patterns below one folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from petseg.data.sources.files import stem
from petseg.errors import PetsegError

_WILDCARD = re.compile(r"\*\*/|\*|\?|\{[^{}]*\}")
_TIED = re.compile(r"(?<!\.)\{[^{}]*,[^{}]*\}")
"""Braces that stand for the same on both sides, if both have them; those behind a dot are suffixes."""

_EXPRESSIONS = {"**/": "((?:.*/)?)", "*": "([^/]*)", "?": "([^/])"}

Values = tuple[str, ...]
"""What the wildcards of a pattern stand for in a path, in order."""


@dataclass(slots=True)
class Matched:
    """Files below a folder, paired by patterns; all paths relative to it, with `/`."""

    masks: dict[str, list[str]] = field(default_factory=dict)
    """By image; more than one where the masks' side has a wildcard that the images' side lacks."""
    names: dict[str, str] = field(default_factory=dict)
    """By image: what the wildcards stand for, which no other image has; else its path without suffix."""
    images_alone: list[str] = field(default_factory=list)
    masks_alone: list[str] = field(default_factory=list)


class PairPattern:
    """`images/*.jpg=masks/*_gt.png`: where images are, and their masks, both below one folder.

    `*` stands for anything within a name, `**/` for any folders, `?` for one character, `{jpg,png}` for one of these.
    An image and a mask pair where the wildcards stand for the same, in order; braces count as wildcards where both
    sides have the same ones, but not as a suffix. Where one side has more wildcards, those of the other are taken for
    the ones among them that pair the most files.

    Raises:
        PetsegError: it is not a pattern.
    """

    def __init__(self, text: str) -> None:
        images, equals, masks = text.partition("=")
        if not (images and equals and masks):
            raise PetsegError(f"--pair '{text}': give IMAGES=MASKS, such as 'images/*.jpg=masks/*_gt.png'.")
        shared = _braces(images) & _braces(masks)
        self._images, self._masks = _expression(images, shared), _expression(masks, shared)
        if not (self._images.groups and self._masks.groups):
            raise PetsegError(
                f"--pair '{text}': give both sides a wildcard at least, such as 'images/*.jpg=masks/*.png'."
            )

    def match(self, files: Sequence[str]) -> tuple[dict[str, Values], dict[str, Values], dict[str, list[str]]]:
        """(values of every image, values of every mask, masks by image); a file may be both."""
        images, masks = (
            {path: m.groups() for path in files if (m := side.fullmatch(path))} for side in (self._images, self._masks)
        )
        return images, masks, self._joined(images, masks)

    def _joined(self, images: dict[str, Values], masks: dict[str, Values]) -> dict[str, list[str]]:
        few, many = sorted((self._images.groups, self._masks.groups))
        best: dict[str, list[str]] = {}
        # From the right: names stand at the end, and of two ways that pair as many files the first one counts.
        for places in sorted(itertools.combinations(range(many), few), reverse=True):
            of_values: dict[Values, list[str]] = {}
            for path, values in masks.items():
                of_values.setdefault(_at(values, places), []).append(path)
            found = {path: of_values.get(_at(values, places), []) for path, values in images.items()}
            found = {path: sorted(set(its) - {path}) for path, its in found.items()}
            found = {path: its for path, its in found.items() if its}
            if len(found) > len(best):
                best = found
        return best


def match_all(patterns: Iterable[PairPattern], files: Sequence[str]) -> Matched:
    """Pair files by several patterns; of those that fit an image, the first counts."""
    found = Matched()
    as_image: dict[str, Values] = {}
    as_mask: set[str] = set()
    for pattern in patterns:
        images, masks, joined = pattern.match(files)
        as_image = images | as_image
        as_mask |= masks.keys()
        found.masks = joined | found.masks
    used = {mask for its in found.masks.values() for mask in its}
    found.masks = {image: its for image, its in sorted(found.masks.items()) if image not in used}
    found.images_alone = sorted(as_image.keys() - found.masks.keys() - as_mask)
    found.masks_alone = sorted(as_mask - used - found.masks.keys())
    times: dict[str, int] = {}
    for image in found.masks:
        found.names[image] = name = "/".join(part for value in as_image[image] if (part := value.strip("/")))
        times[name] = times.get(name, 0) + 1
    for image, name in found.names.items():
        if times[name] > 1 or not name:
            found.names[image] = stem(image)
    return found


def _at(values: Values, places: tuple[int, ...]) -> Values:
    return values if len(values) == len(places) else tuple(values[place] for place in places)


def _braces(side: str) -> set[frozenset[str]]:
    return {_alternatives(found) for found in _TIED.findall(side)}


def _alternatives(braces: str) -> frozenset[str]:
    return frozenset(braces[1:-1].split(","))


def _expression(side: str, shared: set[frozenset[str]]) -> re.Pattern[str]:
    pattern, at = "", 0
    for match in _WILDCARD.finditer(side):
        pattern += re.escape(side[at : match.start()])
        wildcard, at = match[0], match.end()
        if wildcard in _EXPRESSIONS:
            pattern += _EXPRESSIONS[wildcard]
        else:
            alternatives = _alternatives(wildcard)
            tied = alternatives in shared and _TIED.match(side, match.start())
            pattern += f"({'' if tied else '?:'}{'|'.join(map(re.escape, sorted(alternatives)))})"
    return re.compile(pattern + re.escape(side[at:]))
