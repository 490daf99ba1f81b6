"""Class names and colours, fit for images and for lines on light and dark paper."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from petseg.classes import OXFORD, ClassTable, default_colours

RGB = tuple[int, int, int]

LIGHT_PAPER: RGB = (255, 255, 255)
DARK_PAPER: RGB = (29, 30, 34)
"""What charts and tables stand on; the style sheet's `--card`, light and dark."""

LINE_CONTRAST = 3.8
"""Contrast of lines with their paper: WCAG 2.1 (1.4.11) asks 3 of graphics, and these are thin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassLook:
    """How one class is shown."""

    name: str
    colour: RGB
    """In overlays, where an image lies beneath."""
    on_light: RGB
    """The same hue for lines on light paper."""
    on_dark: RGB
    """The same hue for lines on dark paper."""


def class_looks(classes: ClassTable | None, names: Sequence[str], count: int) -> tuple[ClassLook, ...]:
    """Names and colours in the order of the class indices.

    Args:
        classes: the run's class table, where it is known.
        names: the class names of the summary, in order; Oxford's get Oxford's colours.
        count: how many classes there are at least; those without a name are called `class N`.
    """
    if classes is None and tuple(names) == OXFORD.names:
        classes = OXFORD
    if classes is not None:
        pairs = list(zip(classes.names, classes.colours, strict=True))
    else:
        total = max(len(names), count)
        every = [*names, *(f"class {i}" for i in range(len(names), total))]
        pairs = list(zip(every, default_colours(total), strict=True))
    return tuple(
        ClassLook(
            name=name,
            colour=colour,
            on_light=readable(colour, LIGHT_PAPER),
            on_dark=readable(colour, DARK_PAPER),
        )
        for name, colour in pairs
    )


def readable(colour: RGB, paper: RGB) -> RGB:
    """`colour` with its lightness moved until it stands out from `paper`; all values 0 to 255."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(v / 255 for v in colour))
    step = -0.01 if luminance(paper) > 0.5 else 0.01
    found = colour
    while contrast(found, paper) < LINE_CONTRAST and 0 < lightness + step < 1:
        lightness += step
        red, green, blue = (round(255 * v) for v in colorsys.hls_to_rgb(hue, lightness, saturation))
        found = (red, green, blue)
    return found


def luminance(colour: RGB) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2.1)."""
    red, green, blue = (v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: RGB, other: RGB) -> float:
    """Contrast ratio of two sRGB colours, 1 to 21 (WCAG 2.1)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
