"""One image from beginning to end: place, clutter, pet, something in front, light and lens."""

from __future__ import annotations

import math

import cv2
import numpy as np

from petseg.data.sources.synthetic.anatomy import traits
from petseg.data.sources.synthetic.canvas import Canvas
from petseg.data.sources.synthetic.poses import pose
from petseg.data.sources.synthetic.scenery import backdrop, background, shadow, thing, veil
from petseg.data.sources.synthetic.shapes import fluffed, turned
from petseg.data.sources.synthetic.textures import coat, pick, rgb, shifted

BORDER = 0.021
"""Thickness of the trimap's border on each side of the outline, as a share of the image's side."""

_INK = (0.006, 0.012)
"""Least and greatest width of the drawn contour round a pet, likewise."""
_LEAST_PET = 0.06
_ATTEMPTS = 20


def draw(seed: int, index: int, *, cat: bool, min_side: int, max_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one pet.

    Args:
        seed: the set's seed.
        index: the image's number in the set.
        cat: a cat, else a dog.
        min_side: least height and width in pixels.
        max_side: greatest height and width in pixels.

    Returns:
        The image, u8[H, W, 3] in RGB, and its trimap, u8[H, W] of Oxford's codes: 1 pet, 2 background, 3 border.
    """
    for attempt in range(_ATTEMPTS):
        rng = np.random.Generator(np.random.PCG64([seed & 0xFFFFFFFFFFFFFFFF, index, attempt]))
        canvas = _compose(rng, cat=cat, min_side=min_side, max_side=max_side)
        trimap = canvas.trimap(BORDER)
        # Something in front may hide a small pet all but wholly; such an image teaches nothing.
        if (trimap == 1).mean() >= _LEAST_PET:
            break
    return _photograph(rng, canvas.image), trimap


def _compose(rng: np.random.Generator, *, cat: bool, min_side: int, max_side: int) -> Canvas:
    h, w = (int(v) for v in rng.integers(min_side, max_side + 1, 2))
    image, horizon, place = background(rng, h, w)
    angle = rng.uniform(-np.pi * 0.9, -np.pi * 0.1)
    canvas = Canvas(image, (float(np.cos(angle)), float(np.sin(angle))))
    backdrop(rng, canvas, horizon, place)
    for _ in range(int(rng.integers(1, 6))):
        size = min(h, w) * rng.uniform(0.12, 0.42)
        x, y = w * rng.random(), h * rng.uniform(horizon, 1.0)
        shadow(canvas, x, y, size * 0.5, size * 0.1, depth=0.3)
        thing(rng, canvas, x, y, size)
    x, y, size = _pet(rng, canvas, cat=cat)
    if rng.random() < 0.4:
        veil(rng, canvas, x, y, size)
    return canvas


def _pet(rng: np.random.Generator, canvas: Canvas, *, cat: bool) -> tuple[float, float, float]:
    """Draw the pet; return its centre and size in pixels."""
    h, w = canvas.height, canvas.width
    turn = rng.normal(0, 0.12)
    mirror = float(pick(rng, (-1, 1)))
    # The coat's scale must be known before the pet is: 0.8 of the shorter side is what most pets come to.
    textures, pattern = coat(rng, h, w, 0.8 * min(h, w), turn)
    t = traits(rng, cat=cat, pattern=pattern)
    parts = pose(rng, t)
    solid = np.concatenate([turned(p.points * (mirror, 1), turn) for p in parts if p.kind == "pet"])
    low, high = solid.min(axis=0), solid.max(axis=0)
    hull = cv2.contourArea(np.asarray(cv2.convexHull(solid.astype(np.float32))))
    scale = float(np.sqrt(rng.uniform(0.3, 0.72) * h * w / hull))
    scale = min(scale, 1.15 * h / (high[1] - low[1]), 1.15 * w / (high[0] - low[0]))
    spare = np.array((w, h)) - (high - low) * scale
    where = rng.uniform(-0.1, 1.1, 2) if rng.random() < 0.25 else rng.uniform(0.1, 0.9, 2)
    where[1] = max(where[1], rng.uniform(0.4, 1.0))
    origin = spare * where - low * scale
    paints = {
        **textures,
        "pink": shifted(rng, (226, 150, 146), 8),
        "red": shifted(rng, (222, 96, 104), 8),
        "black": rgb(26, 22, 24),
        "white": rgb(250, 250, 248),
        "line": rgb(48, 34, 34),
        "gold": rgb(232, 190, 80),
        "collar": shifted(rng, pick(rng, ((190, 40, 48), (40, 90, 160), (60, 130, 90), (240, 180, 60))), 10),
        "iris": shifted(rng, _irises(rng, cat=cat), 8),
    }
    centre = origin + (low + high) / 2 * scale
    shadow(
        canvas, centre[0], origin[1] + high[1] * scale - 0.03 * h, (high[0] - low[0]) * scale * 0.5, 0.05 * h, depth=0.4
    )
    outlines = [turned(part.points * (mirror, 1), turn) * scale + origin for part in parts]
    if t.fluff:
        outlines = [fluffed(o, t.fluff * scale, rng) if p.fluffy else o for p, o in zip(parts, outlines, strict=True)]
    ink = textures["coat"].mean(axis=(1, 2), keepdims=True) * 0.25
    canvas.ink(
        [o for p, o in zip(parts, outlines, strict=True) if p.kind == "pet"], ink, rng.uniform(*_INK) * math.sqrt(h * w)
    )
    for part, points in zip(parts, outlines, strict=True):
        paint = paints[part.role]
        if part.line:
            canvas.stroke(points, paint, part.line * scale / 200, 0.85)
        else:
            shaded = paint if part.shade == 1 else paint * np.float32(part.shade)
            canvas.fill(
                points,
                shaded,
                kind=part.kind,
                volume=part.volume,
                outline=part.outline,
                thickness=scale * 0.011,
            )
    return float(centre[0]), float(centre[1]), float((high - low).max() * scale)


def _irises(rng: np.random.Generator, *, cat: bool) -> tuple[int, int, int]:
    if cat:
        return pick(rng, ((176, 190, 70), (226, 170, 50), (110, 170, 200), (120, 170, 90)))
    return pick(rng, ((96, 58, 34), (70, 44, 32), (140, 90, 44), (120, 160, 190)))


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Light that falls off, a cast of colour, a lens and a sensor: u8[H, W, 3]."""
    h, w = image.shape[1:]
    across, down = np.linspace(-1, 1, w, dtype=np.float32)[None, :], np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    bright = rng.uniform(0.82, 1.12)
    ramp = bright * (1 + rng.normal(0, 0.12) * across + rng.normal(0, 0.12) * down)
    cast = rng.normal(1, 0.035, 3).astype(np.float32).reshape(3, 1, 1)
    out = image * ramp * cast
    out += rng.standard_normal((h, w), dtype=np.float32) * rng.uniform(1, 4)
    pixels = np.ascontiguousarray(np.clip(out, 0, 255).astype(np.uint8).transpose(1, 2, 0))
    return np.asarray(cv2.GaussianBlur(pixels, (3, 3), rng.uniform(0.3, 0.8))) if rng.random() < 0.6 else pixels
