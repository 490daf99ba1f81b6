"""Heads of cats and dogs, in units of the head's radius: skull about (0, 0), y down, looking at us or to the right."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from petseg.data.sources.synthetic.canvas import Kind
from petseg.data.sources.synthetic.shapes import Points, ellipse, limb, moved, spline, turned
from petseg.data.sources.synthetic.textures import pick


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One shape of a pet."""

    points: Points
    """Its outline, or its path where `line` is set."""
    role: str
    """Which paint: coat, light, dark, pink, black, white, iris, red, line."""
    kind: Kind = "pet"
    shade: float = 1.0
    """Brightness: legs on the far side are darker."""
    volume: float = 0.0
    outline: float = 0.0
    line: float = 0.0
    """Drawn as a line of this width, in pixels on a pet of 200 pixels."""
    fluffy: bool = False
    """May grow tufts on a long-haired pet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What one pet has in all its parts."""

    cat: bool
    ears: str
    """`pointed`, `floppy` or `folded`."""
    ear: float
    """Length of the ears, about 1."""
    face: float
    """Width of the face, about 1."""
    muzzle: float
    """Length and width of the muzzle, about 1."""
    eye: float
    """Size of the eyes, about 1."""
    asleep: bool
    tongue: bool
    blaze: bool
    """A light stripe down the face."""
    patch: float
    """A dark patch around one eye: its side, -1 or 1, or 0 for none."""
    brow: bool
    """Marks on the forehead (a tabby's M, a black-and-tan's brows)."""
    collar: bool
    socks: bool
    fluff: float
    """Length of its tufts in body units; 0 is short-haired."""
    stout: float
    """Girth, about 1."""
    legs: float
    """Length of its legs, about 1."""
    tail: float
    """Length of its tail, about 1."""


def traits(rng: np.random.Generator, *, cat: bool, pattern: str) -> Traits:
    """The anatomy of a random cat or dog."""
    ears = "pointed" if cat else pick(rng, ("floppy", "floppy", "pointed", "folded"))
    if cat and rng.random() < 0.08:
        ears = "folded"
    return Traits(
        cat=cat,
        ears=ears,
        ear=rng.uniform(0.8, 1.2) * (1.0 if cat else 1.1),
        face=rng.uniform(0.9, 1.1),
        muzzle=rng.uniform(0.85, 1.1) if cat else rng.uniform(0.85, 1.35),
        eye=rng.uniform(0.85, 1.2),
        asleep=rng.random() < 0.08,
        tongue=not cat and rng.random() < 0.4,
        blaze=rng.random() < (0.15 if cat else 0.35),
        patch=float(pick(rng, (-1, 1))) if rng.random() < 0.2 else 0.0,
        brow=pattern == "tabby" or (not cat and rng.random() < 0.2),
        collar=rng.random() < 0.3,
        socks=rng.random() < 0.45,
        fluff=rng.uniform(0.015, 0.035) if rng.random() < 0.45 else 0.0,
        stout=rng.uniform(0.85, 1.25),
        legs=rng.uniform(0.8, 1.1) if cat else rng.uniform(0.5, 1.2),
        tail=rng.uniform(0.8, 1.2) if cat else rng.uniform(0.5, 1.0),
    )


def placed(parts: list[Part], x: float, y: float, size: float, turn: float = 0.0) -> list[Part]:
    """The parts made `size` times as large, turned by `turn` radians and moved to (x, y)."""
    return [replace(part, points=moved(turned(part.points * size, turn), x, y)) for part in parts]


def _pair(part: Part) -> list[Part]:
    """It and its mirror image."""
    return [part, replace(part, points=part.points * (-1, 1))]


def _mark(points: Points, role: str, **more: float) -> Part:
    return Part(points=points, role=role, kind="mark", **more)  # type: ignore[arg-type]


def _eye(t: Traits, x: float, y: float, r: float, look: float) -> list[Part]:
    """An open or a closed eye; `look` moves the pupil aside."""
    if t.asleep:
        lid = [(x - r, y - 0.1 * r), (x, y + 0.5 * r), (x + r, y - 0.1 * r)]
        return [_mark(spline(lid, closed=False), "line", line=2.6)]
    if not t.cat:
        return [
            _mark(ellipse(x, y, r * 0.78), "iris", outline=0.6),
            _mark(ellipse(x + look * 0.15 * r, y, r * 0.6), "black"),
            _mark(ellipse(x + 0.22 * r, y - 0.28 * r, r * 0.22, n=10), "white"),
        ]
    return [
        _mark(ellipse(x, y, r, r * 0.95), "iris", outline=0.75, volume=0.2),
        _mark(ellipse(x + look * 0.2 * r, y, r * 0.42, r * 0.82), "black"),
        _mark(ellipse(x + 0.25 * r, y - 0.35 * r, r * 0.24, n=10), "white"),
    ]


def _ears(t: Traits, *, front: bool) -> list[Part]:
    """Both ears; those that hang lie in front of the skull, those that stand, behind it."""
    e = t.ear
    if t.ears == "floppy":
        if not front:
            return []
        flap = [(-0.5, -0.78), (-0.86, -0.66), (-1.16, -0.1), (-1.14, 0.5 * e), (-0.88, 0.72 * e), (-0.7, 0.2)]
        return _pair(Part(points=spline(flap), role="dark", volume=0.2, outline=0.4, fluffy=True))
    if front and t.ears == "folded":
        fold = [(-0.98, -0.98), (-0.45, -1.02), (-0.62, -0.45)]
        return _pair(Part(points=np.array(fold), role="dark", volume=0.15, outline=0.35))
    if front:
        return []
    if t.ears == "folded":
        return _pair(Part(points=spline([(-0.9, -0.3), (-0.95, -1.0), (-0.5, -1.05), (-0.2, -0.7)]), role="coat"))
    top = -0.85 - 0.58 * e
    lean = -0.78 if t.cat else -0.7
    outer = np.array(
        [(-0.93, -0.2), (-0.93, -0.6), (lean - 0.05, top), (lean + 0.06, top), (-0.35, -0.84), (-0.1, -0.7)]
    )
    inner = np.array([(-0.82, -0.45), (lean, top + 0.2), (-0.36, -0.7)])
    return _pair(Part(points=outer, role="dark", outline=0.4, fluffy=True)) + _pair(_mark(inner, "pink"))


def front_head(t: Traits, look: float) -> list[Part]:
    """A face that looks at us; `look`, -1 to 1, moves its features aside as a slight turn does."""
    f, m, dx = t.face, t.muzzle, 0.12 * look
    parts = _ears(t, front=False)
    if t.cat:
        skull = [(0, -0.86), (0.55 * f, -0.74), (0.92 * f, -0.25), (1.02 * f, 0.25), (0.66 * f, 0.68), (0, 0.84)]
    else:
        skull = [(0, -0.9), (0.55 * f, -0.8), (0.86 * f, -0.25), (0.84 * f, 0.3), (0.52 * f, 0.78), (0, 0.95)]
    whole = [*skull, *((-x, y) for x, y in skull[-2:0:-1])]
    parts.append(Part(points=spline(whole), role="coat", volume=0.2, outline=0.45, fluffy=True))
    if t.blaze:
        stripe = [(dx - 0.07, -0.75), (dx + 0.07, -0.75), (dx + 0.17, 0.1), (dx + 0.3, 0.55), (dx - 0.3, 0.55)]
        parts.append(_mark(spline([*stripe, (dx - 0.17, 0.1)]), "light"))
    ex, ey, er = (0.43, -0.08, 0.25) if t.cat else (0.36, -0.16, 0.22)
    if t.patch:
        parts.append(_mark(ellipse(t.patch * ex * f + dx, ey, 0.34, 0.4, 0.3 * t.patch), "dark"))
    if t.brow and t.cat:
        parts += [_mark(limb((x * 0.8 + dx, -0.74), 0.045, (x + dx, -0.42), 0.03), "dark") for x in (-0.28, 0, 0.28)]
    elif t.brow:
        parts += [_mark(ellipse(x * 0.36 + dx, -0.45, 0.13, 0.08, x * 0.4), "light") for x in (-1, 1)]
    for side in (-1, 1):
        parts += _eye(t, side * ex * f + dx, ey, er * t.eye, look)
    parts += _cat_muzzle(m, dx) if t.cat else _dog_muzzle(t, m, dx)
    return parts + _ears(t, front=True)


def _cat_muzzle(m: float, dx: float) -> list[Part]:
    parts = [_mark(ellipse(dx, 0.58, 0.24 * m, 0.18), "light", volume=0.1)]
    parts += [_mark(ellipse(dx + s * 0.19 * m, 0.42, 0.25 * m, 0.2), "light", volume=0.12) for s in (-1, 1)]
    for s in (-1, 1):
        for k in (-1, 0, 1):
            whisker = [
                (dx + s * 0.34, 0.42 + 0.07 * k),
                (dx + s * 0.85, 0.38 + 0.13 * k),
                (dx + s * 1.3, 0.46 + 0.24 * k),
            ]
            parts.append(_mark(spline(whisker, closed=False, steps=4), "white", line=0.9))
        mouth = [(dx, 0.36), (dx + s * 0.06, 0.5), (dx + s * 0.22, 0.5)]
        parts.append(_mark(spline(mouth, closed=False), "line", line=1.6))
    nose = [(dx - 0.13, 0.2), (dx + 0.13, 0.2), (dx + 0.05, 0.33), (dx - 0.05, 0.33)]
    return [*parts, _mark(spline(nose, steps=3), "pink", outline=0.35)]


def _dog_muzzle(t: Traits, m: float, dx: float) -> list[Part]:
    parts = []
    if t.tongue:
        parts.append(Part(points=limb((dx, 0.7), 0.15, (dx + 0.03, 1.0), 0.15), role="red", outline=0.3))
    role = "light" if t.blaze or t.brow or t.socks else "coat"
    parts.append(Part(points=ellipse(dx, 0.46, 0.46 * m, 0.4), role=role, volume=0.22, outline=0.28))
    for s in (-1, 1):
        mouth = [(dx, 0.4), (dx + s * 0.05, 0.62), (dx + s * 0.3 * m, 0.62)]
        parts.append(_mark(spline(mouth, closed=False), "line", line=2.0))
    return [
        *parts,
        _mark(ellipse(dx, 0.26, 0.21 * m, 0.15), "black"),
        _mark(ellipse(dx + 0.05, 0.2, 0.06, 0.03, n=10), "white"),
    ]


def side_head(t: Traits) -> list[Part]:
    """A head in profile, looking to the right."""
    snout = 0.62 if t.cat else 0.72 + 0.38 * t.muzzle
    tip = 0.3 if t.cat else 0.27
    e = t.ear
    parts = []
    if t.ears != "floppy":
        far = np.array([(0.0, -0.6), (0.22, -0.82 - 0.52 * e), (0.5, -0.5)])
        parts.append(Part(points=far, role="dark", shade=0.75, outline=0.3))
    if t.tongue:
        tongue = limb((snout - 0.2, 0.5), 0.1, (snout - 0.08, 0.82), 0.12)
        parts.append(Part(points=tongue, role="red", outline=0.3))
    light = "light" if t.cat or t.blaze or t.socks else "coat"
    parts += [
        Part(points=limb((0.25, 0.2), 0.5, (snout, 0.32), tip), role=light, volume=0.15, outline=0.35),
        Part(points=ellipse(0, 0, 0.84, 0.8), role="coat", volume=0.2, outline=0.3, fluffy=True),
        _mark(ellipse(0.3, 0.1, 0.46, 0.4), "coat"),
        _mark(spline([(snout + 0.15, 0.42), (snout - 0.2, 0.48), (0.4, 0.42)], closed=False), "line", line=1.8),
        *_eye(t, 0.4, -0.17, 0.2 * t.eye, 0.8),
    ]
    if t.cat:
        parts.append(_mark(ellipse(snout + 0.24, 0.2, 0.09, 0.08), "pink"))
        for k in (-1, 0, 1):
            whisker = [(0.62, 0.38 + 0.05 * k), (0.95, 0.5 + 0.14 * k), (1.2, 0.62 + 0.25 * k)]
            parts.append(_mark(spline(whisker, closed=False, steps=4), "white", line=0.9))
    else:
        parts.append(Part(points=ellipse(snout + 0.17, 0.17, 0.15, 0.13), role="black"))
    if t.ears == "floppy":
        flap = [(-0.1, -0.62), (-0.45, -0.6), (-0.62, 0.1), (-0.5, 0.75 * e), (-0.15, 0.68 * e), (0.05, 0.0)]
        parts.append(Part(points=spline(flap), role="dark", volume=0.2, outline=0.4, fluffy=True))
    else:
        near = np.array(
            [(-0.62, -0.4), (-0.5, -0.7), (-0.32, -0.86 - 0.56 * e), (-0.22, -0.86 - 0.56 * e), (0.18, -0.55)]
        )
        parts.append(Part(points=near, role="dark", outline=0.4, fluffy=True))
        parts.append(_mark(np.array([(-0.42, -0.58), (-0.27, -0.72 - 0.46 * e), (0.0, -0.6)]), "pink"))
    return parts
