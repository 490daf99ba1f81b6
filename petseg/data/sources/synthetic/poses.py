"""Whole pets, part by part from back to front: the ground is y = 0, a sitting pet is about 1 tall and looks at us."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from petseg.data.sources.synthetic.anatomy import Part, Traits, front_head, placed, side_head
from petseg.data.sources.synthetic.shapes import Points, ellipse, limb, ribbon, spline
from petseg.data.sources.synthetic.textures import pick

Pose = Callable[[np.random.Generator, Traits], list[Part]]


def pose(rng: np.random.Generator, t: Traits) -> list[Part]:
    """Parts of a pet in one of the poses, about 1 tall, looking at us or to the right."""
    poses: tuple[tuple[Pose, int], ...] = (
        (_sitting, 3),
        (_sitting_aside, 2),
        (_standing, 1),
        (_lying, 1),
        (_portrait, 3),
        (_curled, 1),
    )
    return pick(rng, [draw for draw, weight in poses for _ in range(weight)])(rng, t)


def _furry(points: Points, role: str = "coat", *, shade: float = 1.0, outline: float = 0.38) -> Part:
    return Part(points=points, role=role, shade=shade, volume=0.18, outline=outline, fluffy=True)


def _paw(t: Traits, x: float, y: float, rx: float = 0.085, ry: float = 0.055, *, shade: float = 1.0) -> list[Part]:
    role = "light" if t.socks else "coat"
    toes = [
        Part(
            points=np.array([(x + dx, y - 0.1 * ry), (x + dx * 1.1, y + 0.75 * ry)]), role="line", kind="mark", line=1.2
        )
        for dx in (-0.33 * rx, 0.33 * rx)
    ]
    return [Part(points=ellipse(x, y, rx, ry), role=role, shade=shade, volume=0.15, outline=0.4), *toes]


def _collar(t: Traits, x: float, y: float, rx: float) -> list[Part]:
    if not t.collar:
        return []
    band = spline(
        [(x - rx, y - 0.03), (x, y + 0.05), (x + rx, y - 0.03), (x + rx, y + 0.03), (x, y + 0.11), (x - rx, y + 0.03)]
    )
    return [
        Part(points=band, role="collar", outline=0.4),
        Part(points=ellipse(x, y + 0.12, 0.035), role="gold", outline=0.4),
    ]


def _head(rng: np.random.Generator, t: Traits, x: float, y: float, r: float, *, aside: float = 0.3) -> list[Part]:
    """A head seen from the front or, with the chance `aside`, from the side."""
    if rng.random() < aside:
        return placed(side_head(t), x, y, r * 1.05, rng.normal(0, 0.15))
    return placed(front_head(t, rng.uniform(-1, 1)), x, y, r, rng.normal(0, 0.14))


def _sitting(rng: np.random.Generator, t: Traits) -> list[Part]:
    g = t.stout
    side = float(pick(rng, (-1, 1)))
    tip = rng.uniform(-0.75, -0.1)
    path = [
        (side * 0.15, -0.08),
        (side * 0.42, -0.06),
        (side * (0.5 + 0.1 * t.tail), tip * 0.6 - 0.05),
        (side * 0.5, tip),
    ]
    parts = [_furry(ribbon(path, 0.06, 0.04 if t.cat else 0.035))]
    for s in (-1, 1):
        parts.append(_furry(ellipse(s * 0.23 * g, -0.18, 0.17, 0.18), shade=0.92))
        parts += _paw(t, s * 0.27 * g, -0.045, 0.12, 0.06, shade=0.95)
    body = [(0, -0.78), (0.16, -0.68), (0.2 * g, -0.45), (0.26 * g, -0.18), (0.18 * g, -0.04), (0, -0.03)]
    parts.append(_furry(spline([*body, *((-x, y) for x, y in body[-2:0:-1])])))
    parts.append(Part(points=ellipse(0, -0.46, 0.12 * g, 0.2), role="light", kind="mark"))
    for s in (-1, 1):
        parts.append(_furry(limb((s * 0.1, -0.42), 0.075 * g, (s * 0.105, -0.08), 0.06), outline=0.3))
        parts += _paw(t, s * 0.11, -0.04)
    r = rng.uniform(0.23, 0.3)
    parts += _collar(t, 0, -0.68, 0.15)
    return parts + _head(rng, t, rng.normal(0, 0.03), -0.68 - 0.62 * r, r, aside=0.12)


def _sitting_aside(rng: np.random.Generator, t: Traits) -> list[Part]:
    g = t.stout
    path = [(-0.25, -0.08), (-0.5, -0.05), (-0.62 - 0.1 * t.tail, -0.2), (-0.6, rng.uniform(-0.55, -0.32))]
    parts = [_furry(ribbon(path, 0.06, 0.035))]
    parts += [_furry(limb((0.2, -0.4), 0.07, (0.22, -0.06), 0.05), shade=0.75), *_paw(t, 0.26, -0.04, shade=0.75)]
    body = [
        (0.02, -0.75),
        (0.24, -0.66),
        (0.3, -0.45),
        (0.16, -0.15),
        (-0.1, -0.02),
        (-0.34 * g, -0.06),
        (-0.36 * g, -0.3),
        (-0.16, -0.55),
    ]
    parts += [_furry(spline(body))]
    parts.append(Part(points=ellipse(0.2, -0.46, 0.08, 0.18, -0.2), role="light", kind="mark"))
    parts += [_furry(limb((0.16, -0.42), 0.085, (0.14, -0.07), 0.058)), *_paw(t, 0.18, -0.04)]
    parts += [_furry(ellipse(-0.17 * g, -0.19, 0.2 * g, 0.18, -0.3)), *_paw(t, -0.02, -0.045, 0.13, 0.055)]
    parts += _collar(t, 0.13, -0.7, 0.14)
    r = rng.uniform(0.22, 0.27)
    return parts + _head(rng, t, 0.16, -0.74 - 0.5 * r, r, aside=0.6)


def _standing(rng: np.random.Generator, t: Traits) -> list[Part]:
    g, leg = 0.17 * t.stout, 0.34 * t.legs
    half = rng.uniform(0.36, 0.5)
    back = -leg - 2 * g
    stride = rng.uniform(-0.1, 0.1)
    up = rng.uniform(-0.4, 0.25) if t.cat else rng.uniform(-0.35, 0.1)
    root = (-half + 0.02, back + 0.08)
    path = [
        root,
        (-half - 0.14, root[1] - 0.02),
        (-half - 0.22 * t.tail, root[1] + up * 0.6),
        (-half - 0.2 * t.tail, root[1] + up),
    ]
    parts = [_furry(ribbon(path, 0.055, 0.035))]
    for x, swing in ((-half + 0.13, -stride), (half - 0.08, stride)):
        foot = x + 0.05 + swing
        parts += [
            _furry(limb((x, -leg - 0.1), 0.085, (foot, -0.06), 0.048), shade=0.72),
            *_paw(t, foot + 0.03, -0.04, 0.075, 0.05, shade=0.72),
        ]
    body = [
        (-half, back + 0.1), (-half + 0.18, back), (0, back + 0.03), (half - 0.15, back - 0.02),
        (half + 0.04, back + 0.12),
        (half, -leg - 0.03), (half - 0.3, -leg + 0.02), (-0.05, -leg - 0.02), (-half + 0.2, -leg - 0.08),
        (-half - 0.02, -leg - 0.05),
    ]  # fmt: skip
    hx, hy, r = half + 0.12, back - rng.uniform(0.02, 0.2), rng.uniform(0.2, 0.25)
    parts.append(_furry(limb((half - 0.08, back + 0.16), 0.17, (hx - 0.03, hy), 0.12)))
    parts.append(_furry(spline(body)))
    parts.append(
        Part(points=limb((half - 0.02, back + 0.18), 0.09, (half, -leg - 0.06), 0.05), role="light", kind="mark")
    )
    for x, swing in ((-half + 0.08, stride), (half - 0.14, -stride)):
        foot = x + 0.02 + swing
        parts += [
            _furry(limb((x, -leg - 0.12), 0.105, (foot, -0.07), 0.052), outline=0.3),
            *_paw(t, foot + 0.03, -0.04, 0.08, 0.05),
        ]
    return parts + _head(rng, t, hx, hy, r, aside=0.55)


def _lying(rng: np.random.Generator, t: Traits) -> list[Part]:
    g = t.stout
    path = [(-0.45, -0.1), (-0.65, -0.05), (-0.75 * t.tail, -0.1), (-0.8 * t.tail, rng.uniform(-0.3, -0.05))]
    parts = [_furry(ribbon(path, 0.055, 0.035))]
    parts += [
        _furry(limb((0.35, -0.12), 0.08, (0.72, -0.06), 0.05), shade=0.78),
        *_paw(t, 0.76, -0.05, 0.085, 0.05, shade=0.8),
    ]
    top = -0.38 * g
    body = [
        (-0.55, -0.12),
        (-0.45, top + 0.06),
        (-0.1, top + 0.04),
        (0.25, top - 0.06),
        (0.45, -0.25),
        (0.42, -0.03),
        (-0.05, 0),
        (-0.48, 0),
    ]
    parts.append(_furry(spline(body)))
    parts += [_furry(ellipse(-0.3, -0.15, 0.23, 0.16, -0.2)), *_paw(t, -0.1, -0.045, 0.14, 0.05)]
    parts.append(Part(points=ellipse(0.37, -0.22, 0.09, 0.14), role="light", kind="mark"))
    parts += [_furry(limb((0.3, -0.1), 0.085, (0.6, -0.055), 0.052)), *_paw(t, 0.63, -0.045, 0.09, 0.052)]
    parts += _collar(t, 0.36, top + 0.02, 0.13)
    r = rng.uniform(0.22, 0.27)
    return parts + _head(rng, t, 0.4, top - 0.4 * r, r, aside=0.3)


def _portrait(rng: np.random.Generator, t: Traits) -> list[Part]:
    wide = 0.42 * t.stout
    chest = [(0, -0.62), (0.2, -0.56), (0.34, -0.36), (wide, 0), (wide, 0.3)]
    parts = [_furry(spline([*chest, *((-x, y) for x, y in chest[:0:-1])]))]
    parts.append(Part(points=ellipse(0, -0.02, 0.2, 0.4), role="light", kind="mark"))
    parts += [Part(points=p.points * 1.5 + (0, 0.2), role=p.role, outline=0.4) for p in _collar(t, 0, -0.42, 0.17)]
    return parts + _head(rng, t, rng.normal(0, 0.03), -0.62, rng.uniform(0.4, 0.46), aside=0.15)


def _curled(rng: np.random.Generator, t: Traits) -> list[Part]:
    t = replace(t, asleep=rng.random() < 0.8, tongue=False)
    top = -0.42 * t.stout
    body = [
        (-0.5, -0.2),
        (-0.4, top + 0.08),
        (-0.12, top),
        (0.2, top + 0.08),
        (0.44, -0.22),
        (0.42, -0.04),
        (0, 0),
        (-0.4, -0.02),
    ]
    parts = [_furry(spline(body)), _furry(ellipse(-0.24, -0.18, 0.23, 0.17, -0.25))]
    path = [(-0.42, -0.14), (-0.3, -0.03), (0.0, -0.03), (0.12 + 0.1 * t.tail, -0.06)]
    parts += [_furry(ribbon(path, 0.075, 0.05)), *_paw(t, 0.22, -0.05, 0.11, 0.055)]
    return parts + placed(
        front_head(t, rng.uniform(-1, 1)), 0.3, -0.22, rng.uniform(0.23, 0.28), rng.normal(0.25, 0.12)
    )
