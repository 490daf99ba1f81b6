"""Thin classes before and after masks were made smaller."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from petseg.classes import ClassTable
from petseg.data.shards.histogram import histogram

_MASKS_LOST, _LEAST_MASKS = 0.05, 2
_WIDTH = 1.5
"""Mean width in pixels below which a class is in pieces."""

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))

Thin = tuple[int, ...]
"""Of a class over masks that were made smaller: masks with it before and after, its pixels before and after, how many
of those before lie at its edge, and its pixels before times the scale."""


def thinned(before: np.ndarray, after: np.ndarray) -> dict[int, Thin]:
    """The pixels that a smaller mask lost, by code.

    Args:
        before: the mask as it was: u8[H, W].
        after: the mask as it is now.
    """
    edge = cv2.compare(cv2.dilate(before, _CROSS), cv2.erode(before, _CROSS), cv2.CMP_NE)
    had, has, edges = histogram(before)[0], histogram(after)[0], np.bincount(before[edge > 0], minlength=256)
    scale = min(after.shape) / min(before.shape)
    return {
        code: (1, int(has[code] > 0), int(had[code]), int(has[code]), int(edges[code]), round(had[code] * scale))
        for code in np.flatnonzero(had).tolist()
    }


_NONE: Thin = (0, 0, 0, 0, 0, 0)


def added(one: Mapping[int, Thin], other: Mapping[int, Thin]) -> dict[int, Thin]:
    """Both together."""
    return {code: tuple(map(operator.add, one.get(code, _NONE), other.get(code, _NONE))) for code in {**one, **other}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinned:
    """A class of which making masks smaller left little, or pieces."""

    name: str
    share_before: float
    """Of all pixels, 0 to 1."""
    share_after: float
    masks_before: int
    masks_after: int
    width: float
    """Mean width in pixels after: twice the area over the edge's length, which a pixel at the edge counts for."""


def thinned_classes(every: Iterable[Mapping[int, Thin]], classes: ClassTable) -> tuple[Thinned, ...]:
    """The classes that are hardly there any more, over all shards."""
    total: dict[int, Thin] = {}
    for each in every:
        total = added(total, each)
    pixels = [sum(found[place] for found in total.values()) or 1 for place in (2, 3)]
    result: list[Thinned] = []
    for code, name in zip(classes.codes, classes.names, strict=True):
        masks, left, before, after, edge, area = total.get(code, _NONE)
        lost = masks - left >= max(_LEAST_MASKS, _MASKS_LOST * masks)
        width = 2 * area / edge if edge else np.inf
        if lost or width < _WIDTH:
            result.append(
                Thinned(
                    name=name,
                    share_before=before / pixels[0],
                    share_after=after / pixels[1],
                    masks_before=masks,
                    masks_after=left,
                    width=width,
                )
            )
    return tuple(result)
