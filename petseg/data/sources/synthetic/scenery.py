"""Rooms and gardens, and the things that stand about in them, behind a pet or in front of it."""

from __future__ import annotations

import numpy as np

from petseg.data.sources.synthetic.canvas import Canvas
from petseg.data.sources.synthetic.shapes import box, cushion, ellipse, fluffed, limb, ribbon, spline
from petseg.data.sources.synthetic.textures import (
    any_colour,
    blend,
    cloth,
    coat,
    ground,
    noise,
    pick,
    rgb,
    shifted,
    step,
)

_SWATCH = 112
"""Side of the textures of things, in pixels: as large as most of them are, and quicker than the whole image."""


def background(rng: np.random.Generator, h: int, w: int) -> tuple[np.ndarray, float, str]:
    """An empty place: f32[3, h, w], the height of its horizon as a share of `h`, and its kind."""
    place = pick(rng, ("room", "room", "room", "garden", "garden", "studio", "blanket"))
    horizon = rng.uniform(0.35, 0.75)
    if place == "blanket":
        return cloth(rng, h, w), horizon, place
    if place == "studio":
        tone = noise(rng, h, w, h * 0.7)
        a = any_colour(rng)
        return blend(a, a * rng.uniform(0.5, 0.9), step(tone, 3.0)), horizon, place
    cut = int(h * horizon)
    if place == "garden":
        sky = shifted(rng, pick(rng, ((150, 190, 220), (206, 214, 220), (232, 202, 170), (120, 140, 110))), 12)
        ramp = np.linspace(0, 1, cut, dtype=np.float32)[:, None]
        upper = blend(sky, sky * 0.4 + 148, ramp * 0.8)
        upper = blend(upper, rgb(246, 246, 246), step(noise(rng, cut, w, h * 0.12, h * 0.25) - 0.6, 1.2) * 0.8)
        lower = ground(rng, h - cut, w, pick(rng, ("grass", "grass", "grass", "sand")))
    else:
        upper = cloth(rng, cut, w)
        lower = ground(rng, h - cut, w, pick(rng, ("wood", "wood", "carpet", "tiles")))
    image = np.concatenate([upper, lower], axis=1)
    if place == "room" and rng.random() < 0.6:
        board = max(2, int(h * 0.025))
        image[:, cut - board : cut] = any_colour(rng)
        image[:, cut - 1 : cut] *= 0.6
    return np.asarray(image, np.float32), horizon, place


def backdrop(rng: np.random.Generator, canvas: Canvas, horizon: float, place: str) -> None:
    """Large things at the back: a sofa, a window, a framed picture, a hedge."""
    h, w = canvas.height, canvas.width
    kinds = (
        ("none", "hedge", "hedge")
        if place == "garden"
        else ("none", "none", "sofa", "sofa", "window", "frame", "shelf")
    )
    kind = pick(rng, kinds)
    y = h * horizon
    if kind == "sofa":
        fabric = cloth(rng, h, w)
        x, half = w * rng.uniform(0.3, 0.7), w * rng.uniform(0.3, 0.5)
        canvas.fill(cushion(x, y - 0.12 * h, half, 0.24 * h), fabric, volume=0.1, outline=0.2)
        for s in (-0.5, 0.5):
            canvas.fill(
                cushion(x + s * half, y + 0.06 * h, half * 0.5, 0.1 * h), fabric * 1.06, volume=0.12, outline=0.2
            )
        for s in (-1, 1):
            canvas.fill(
                cushion(x + s * half, y + 0.02 * h, 0.08 * w, 0.17 * h), fabric * 0.94, volume=0.12, outline=0.2
            )
    elif kind in ("window", "frame"):
        x, top, half = w * rng.uniform(0.15, 0.85), h * rng.uniform(0.02, 0.15), w * rng.uniform(0.1, 0.2)
        bottom = top + h * rng.uniform(0.2, 0.35)
        canvas.fill(box(x - half - 4, top - 4, x + half + 4, bottom + 4), any_colour(rng), outline=0.2)
        canvas.fill(box(x - half, top, x + half, bottom), cloth(rng, _SWATCH, _SWATCH), outline=0.2)
        if kind == "window":
            canvas.fill(box(x - 1.5, top, x + 1.5, bottom), any_colour(rng))
    elif kind == "hedge":
        leaves = shifted(rng, (84, 112, 58), 14) * (1 + 0.2 * noise(rng, h, w, 4))
        for _ in range(int(rng.integers(2, 6))):
            r = h * rng.uniform(0.1, 0.25)
            canvas.fill(fluffed(ellipse(w * rng.random(), y - 0.5 * r, r * 1.2, r), 7, rng), leaves, volume=0.25)
    elif kind == "shelf":
        x = w * rng.uniform(-0.05, 0.5)
        top = y - h * rng.uniform(0.15, 0.35)
        for _ in range(int(rng.integers(5, 12))):
            wide, tall = w * rng.uniform(0.02, 0.05), h * rng.uniform(0.1, 0.18)
            canvas.fill(box(x, top - tall, x + wide, top), any_colour(rng), volume=0.1, outline=0.2)
            x += wide
        canvas.fill(box(0, top, w, top + 4), any_colour(rng), outline=0.2)


def thing(rng: np.random.Generator, canvas: Canvas, x: float, y: float, size: float) -> None:
    """One thing standing at (x, y), about `size` pixels tall; it hides what is behind it."""
    kind = pick(
        rng, ("ball", "box", "cushion", "cushion", "plant", "plush", "plush", "bowl", "yarn", "pouf", "stone", "lamp")
    )
    r = size / 2
    colour = any_colour(rng)
    if kind == "ball":
        canvas.fill(ellipse(x, y - r, r), colour, volume=0.35, outline=0.2)
        canvas.fill(
            spline([(x - r * 0.9, y - r), (x, y - 1.3 * r), (x + r * 0.9, y - r), (x, y - 0.75 * r)]),
            any_colour(rng),
            volume=0.2,
        )
        canvas.fill(
            ellipse(x + 0.4 * r * canvas.light[0], y - r + 0.4 * r * canvas.light[1], r * 0.16, n=12),
            rgb(250, 250, 250),
            opacity=0.6,
        )
    elif kind == "box":
        wide = r * rng.uniform(0.7, 1.5)
        canvas.fill(box(x - wide, y - size, x + wide, y), cloth(rng, _SWATCH, _SWATCH, colour), volume=0.1, outline=0.2)
        canvas.fill(
            np.array(
                [
                    (x - wide, y - size),
                    (x - wide * 0.7, y - size * 1.25),
                    (x + wide * 1.2, y - size * 1.25),
                    (x + wide, y - size),
                ]
            ),
            colour * 1.12,
            outline=0.2,
        )
    elif kind == "cushion":
        fabric = (
            cloth(rng, _SWATCH, _SWATCH) if rng.random() < 0.5 else coat(rng, _SWATCH, _SWATCH, size * 1.5)[0]["coat"]
        )
        canvas.fill(
            cushion(x, y - r * 0.8, r * rng.uniform(1, 1.5), r * 0.8, rng.normal(0, 0.2), power=3.2),
            fabric,
            volume=0.2,
            outline=0.2,
        )
    elif kind == "plant":
        canvas.fill(
            np.array([(x - r * 0.4, y - r * 0.7), (x + r * 0.4, y - r * 0.7), (x + r * 0.28, y), (x - r * 0.28, y)]),
            colour,
            volume=0.2,
            outline=0.2,
        )
        leaf = shifted(rng, pick(rng, ((86, 130, 70), (120, 150, 84), (70, 98, 74), (150, 110, 60))), 10)
        for _ in range(int(rng.integers(5, 10))):
            bend, tall = rng.normal(0, 0.7) * r, rng.uniform(0.8, 1.6) * r
            path = [
                (x, y - r * 0.65),
                (x + 0.4 * bend, y - r * 0.65 - tall * 0.6),
                (x + bend, y - r * 0.65 - tall * 0.8),
            ]
            canvas.fill(ribbon(path, r * 0.12, r * 0.02), leaf * rng.uniform(0.75, 1.2), volume=0.15, outline=0.2)
    elif kind in ("plush", "pouf"):
        textures, _ = coat(rng, _SWATCH, _SWATCH, size * 2)
        shape = ellipse(x, y - r * 0.75, r * rng.uniform(1.0, 1.7), r * 0.75, rng.normal(0, 0.15))
        canvas.fill(
            fluffed(shape, size * 0.06, rng) if kind == "plush" else shape, textures["coat"], volume=0.2, outline=0.2
        )
    elif kind == "bowl":
        canvas.fill(
            np.array([(x - r, y - r * 0.7), (x + r, y - r * 0.7), (x + r * 0.7, y), (x - r * 0.7, y)]),
            colour,
            volume=0.25,
            outline=0.2,
        )
        canvas.fill(ellipse(x, y - r * 0.7, r, r * 0.22), colour * 0.55, outline=0.2)
    elif kind == "yarn":
        canvas.fill(ellipse(x, y - r * 0.8, r * 0.8), colour, volume=0.3, outline=0.2)
        for _ in range(7):
            loop = ellipse(x, y - r * 0.8, r * 0.75, r * rng.uniform(0.1, 0.6), rng.uniform(0, np.pi))
            canvas.stroke(loop[:15], colour * 0.7, 1)
    elif kind == "stone":
        corners = [
            (x + r * 1.2 * np.cos(a) * rng.uniform(0.8, 1.1), y - r * 0.6 + r * 0.6 * np.sin(a) * rng.uniform(0.8, 1.1))
            for a in np.linspace(0, 5.5, 8)
        ]
        canvas.fill(spline(corners), colour * (1 + 0.1 * noise(rng, _SWATCH, _SWATCH, 3)), volume=0.3, outline=0.2)
    else:
        canvas.fill(limb((x, y - size), 2, (x, y), 2), any_colour(rng), outline=0.2)
        canvas.fill(ellipse(x, y, r * 0.4, r * 0.12), any_colour(rng), outline=0.2)
        canvas.fill(
            np.array(
                [
                    (x - r * 0.3, y - size * 1.25),
                    (x + r * 0.3, y - size * 1.25),
                    (x + r * 0.6, y - size * 0.7),
                    (x - r * 0.6, y - size * 0.7),
                ]
            ),
            colour,
            volume=0.25,
            outline=0.2,
        )


def shadow(canvas: Canvas, x: float, y: float, rx: float, ry: float, *, depth: float) -> None:
    """A soft shadow on the ground about (x, y), `depth` as a share."""
    x0, x1 = max(0, int(x - 1.5 * rx)), min(canvas.width, int(x + 1.5 * rx) + 1)
    y0, y1 = max(0, int(y - 2 * ry)), min(canvas.height, int(y + 2 * ry) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    gx = (np.arange(x0, x1, dtype=np.float32) - x) / rx
    gy = (np.arange(y0, y1, dtype=np.float32) - y) / ry
    far = gx[None, :] ** 2 + gy[:, None] ** 2
    canvas.image[:, y0:y1, x0:x1] *= 1 - depth * np.clip(1.4 - far, 0, 1)


def veil(rng: np.random.Generator, canvas: Canvas, x: float, y: float, size: float) -> None:
    """Something in front of the pet, which is about `size` pixels large and centred at (x, y)."""
    h, w = canvas.height, canvas.width
    kind = pick(rng, ("thing", "thing", "thing", "grass", "table", "post", "blanket"))
    if kind == "thing":
        side = float(pick(rng, (-1, 1)))
        thing(
            rng,
            canvas,
            x + side * size * rng.uniform(0.15, 0.5),
            min(h * 1.02, y + size * rng.uniform(0.3, 0.55)),
            size * rng.uniform(0.25, 0.45),
        )
    elif kind == "grass":
        blade = shifted(rng, pick(rng, ((104, 140, 62), (150, 138, 82), (72, 108, 58))), 12)
        for bx in rng.uniform(0, w, int(w / 4)):
            tall = h * rng.uniform(0.06, 0.2)
            tip = bx + rng.normal(0, 5)
            canvas.fill(np.array([(bx - 2, h), (tip, h - tall), (bx + 2, h)]), blade * rng.uniform(0.75, 1.2))
    elif kind == "table":
        canvas.fill(box(-5, h * rng.uniform(0.78, 0.9), w + 5, h + 5), ground(rng, h, w, "wood"), outline=0.2)
    elif kind == "post":
        px, half = x + size * rng.uniform(-0.35, 0.35), w * rng.uniform(0.015, 0.04)
        canvas.fill(box(px - half, -5, px + half, h + 5), any_colour(rng), volume=0.15, outline=0.2)
    else:
        edge = h * rng.uniform(0.72, 0.88)
        corners = [(-10.0, edge), *((w * k / 4, edge + rng.normal(0, h * 0.03)) for k in range(5)), (w + 10.0, edge)]
        fold = spline(corners, closed=False)
        canvas.fill(
            np.concatenate([fold, [(w + 10, h + 10), (-10, h + 10)]]), cloth(rng, h, w), volume=0.15, outline=0.2
        )
