"""Outlines of points, f64[n, 2] in (x, y) with y down, and where they go on an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

Points = np.ndarray
"""f64[n, 2]: the corners of a closed outline (or of a path) as (x, y)."""


def ellipse(x: float, y: float, rx: float, ry: float | None = None, turn: float = 0.0, *, n: int = 28) -> Points:
    """An ellipse about (x, y) with radii rx and ry (a circle without ry), turned by `turn` radians."""
    points = _circle(n) * (rx, rx if ry is None else ry)
    return moved(turned(points, turn) if turn else points, x, y)


@cache
def _circle(n: int) -> Points:
    t = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def limb(a: tuple[float, float], ra: float, b: tuple[float, float], rb: float) -> Points:
    """A leg, a neck, a snout: the hull of a circle of radius ra about a and one of radius rb about b."""
    both = np.concatenate([ellipse(*a, ra, n=20), ellipse(*b, rb, n=20)]).astype(np.float32)
    return np.asarray(cv2.convexHull(both), np.float64).reshape(-1, 2)


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """An upright rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def cushion(x: float, y: float, rx: float, ry: float, turn: float = 0.0, *, power: float = 4.0) -> Points:
    """A rectangle with soft corners (a superellipse); a higher `power` has sharper corners."""
    circle = _circle(40)
    points = np.sign(circle) * np.abs(circle) ** (2 / power) * (rx, ry)
    return moved(turned(points, turn), x, y)


def spline(corners: Sequence[tuple[float, float]] | Points, *, closed: bool = True, steps: int = 6) -> Points:
    """A smooth (Catmull-Rom) curve through all the corners."""
    p = np.asarray(corners, np.float64)
    if closed:
        before, after, later = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    else:
        before = np.concatenate([p[:1], p[:-2]])
        after, later = p[1:], np.concatenate([p[2:], p[-1:]])
        p = p[:-1]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (v[:, None, :] for v in (before, p, after, later))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.asarray(curve).reshape(-1, 2)


def ribbon(corners: Sequence[tuple[float, float]], start: float, end: float) -> Points:
    """A tail: a smooth band along a path, `start` wide (half width) at its root and `end` at its tip."""
    path = spline(corners, closed=False, steps=7)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    half = np.linspace(start, end, len(path))[:, None]
    side = path + normal * half
    # The tip's circle begins where the left side ends, so that the outline does not cross itself.
    angle = np.arctan2(normal[-1, 1], normal[-1, 0])
    t = angle - np.linspace(0, np.pi, 8)
    tip = path[-1] + end * np.stack([np.cos(t), np.sin(t)], axis=1)
    return np.concatenate([side, tip, (path - normal * half)[::-1]])


def fluffed(points: Points, amount: float, rng: np.random.Generator) -> Points:
    """The outline with tufts of fur: points about `amount` in and out along it, more where it is long."""
    loop = np.concatenate([points, points[:1]])
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(loop, axis=0), axis=1))])
    n = max(12, int(length[-1] / max(amount * 1.3, 1e-3)))
    at = np.linspace(0, length[-1], n, endpoint=False)
    dense = np.stack([np.interp(at, length, loop[:, 0]), np.interp(at, length, loop[:, 1])], axis=1)
    along = np.roll(dense, -1, 0) - np.roll(dense, 1, 0)
    normal = np.stack([along[:, 1], -along[:, 0]], axis=1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
    tufts = np.where(np.arange(n) % 2 == 0, 1.0, -0.3) * rng.uniform(0.3, 1.0, n) * amount * 0.6
    return np.asarray(dense + normal * tufts[:, None])


def moved(points: Points, x: float, y: float) -> Points:
    """Points moved by (x, y)."""
    return np.asarray(points + np.array((x, y)))


def turned(points: Points, turn: float) -> Points:
    """Points turned about the origin by `turn` radians (clockwise on an image)."""
    c, s = np.cos(turn), np.sin(turn)
    return np.asarray(points @ np.array([[c, s], [-s, c]]))
