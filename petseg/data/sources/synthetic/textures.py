"""Colours, noise, coats of fur and the surfaces of a room or a garden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np

T = TypeVar("T")

FURS = (
    (214, 128, 52), (232, 196, 148), (128, 128, 134), (46, 43, 44), (236, 232, 224), (112, 74, 46),
    (74, 50, 38), (190, 152, 104), (98, 108, 124), (212, 164, 84), (156, 78, 40), (168, 160, 150),
)  # fmt: skip
"""Colours of fur, RGB."""

TINTS = (
    (122, 158, 170), (206, 112, 98), (118, 150, 92), (226, 206, 128), (150, 124, 168), (64, 100, 132),
    (230, 168, 160), (88, 132, 112), (196, 202, 206), (142, 66, 62), (70, 76, 96), (238, 220, 200),
)  # fmt: skip
"""Colours of walls, cloth and toys, RGB."""


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of them, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """A colour as the canvas takes it: f32[3, 1, 1]."""
    return np.array((red, green, blue), np.float32).reshape(3, 1, 1)


def shifted(rng: np.random.Generator, colour: Sequence[float], by: float = 14.0) -> np.ndarray:
    """A colour like this one: f32[3, 1, 1]."""
    light, hue = rng.normal(0, by), rng.normal(0, by * 0.35, 3)
    return rgb(*np.clip(np.asarray(colour) + light + hue, 12, 248))


def any_colour(rng: np.random.Generator) -> np.ndarray:
    """f32[3, 1, 1], as often a fur's as another: what is behind a pet must not show it by colour."""
    return shifted(rng, pick(rng, FURS if rng.random() < 0.55 else TINTS), 16)


def noise(rng: np.random.Generator, h: int, w: int, cell_y: float, cell_x: float | None = None) -> np.ndarray:
    """Smooth noise: f32[h, w], mean about 0, deviation about 1, with features of the given size in pixels."""
    cell_x = cell_y if cell_x is None else cell_x
    gh, gw = max(2, int(h / cell_y) + 2), max(2, int(w / cell_x) + 2)
    grid = rng.standard_normal((gh, gw), dtype=np.float32)
    return np.asarray(cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)


def blend(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colours a and b (f32[3, 1, 1] or f32[3, h, w]) mixed by f32[h, w], 0 all a and 1 all b: f32[3, h, w]."""
    return np.asarray(a + share * np.asarray(b - a, np.float32), np.float32)


def step(values: np.ndarray, soft: float = 0.15) -> np.ndarray:
    """0 where negative and 1 where positive, with a soft edge."""
    return np.asarray(np.clip(values * np.float32(1 / soft) + np.float32(0.5), 0, 1))


def _axes(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """f32[h, 1] and f32[1, w]: the coordinates y and x, to be broadcast."""
    return np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None, :]


def fur(rng: np.random.Generator, h: int, w: int, scale: float) -> np.ndarray:
    """The light and shade of hairs: f32[h, w] about 1. `scale` is the pet's size in pixels."""
    hairs = noise(rng, h, w, max(4.0, scale * 0.045), 1.0)
    soft = noise(rng, h, w, scale * 0.12)
    return np.asarray(1 + 0.075 * hairs + 0.05 * soft, np.float32)


def coat(
    rng: np.random.Generator, h: int, w: int, scale: float, turn: float = 0.0
) -> tuple[dict[str, np.ndarray], str]:
    """A pet's coat.

    Args:
        rng: where the chances come from.
        h: height of the image in pixels.
        w: width.
        scale: the pet's size in pixels: stripes and spots grow with it.
        turn: the pet's own turn in radians; stripes follow it.

    Returns:
        Textures by role, f32[3, h, w]: `coat`, `light` (chest, muzzle, socks) and `dark` (ears, points); and the
        pattern's name.
    """
    pattern = pick(rng, ("plain", "plain", "tabby", "tabby", "patches", "patches", "spots", "brindle", "points"))
    base = shifted(rng, pick(rng, FURS))
    other = base * rng.uniform(0.35, 0.62) if base.mean() > 110 else base + rng.uniform(45, 100)
    light = base + (248 - base) * rng.uniform(0.35, 0.95)
    yy, xx = _axes(h, w)
    along = xx * math.cos(turn) + yy * math.sin(turn)
    hairs = fur(rng, h, w, scale)
    if pattern == "tabby":
        wave = np.sin(along * (2 * math.pi / (scale * rng.uniform(0.09, 0.14))) + 1.1 * noise(rng, h, w, scale * 0.12))
        body = blend(base, other, step(wave - rng.uniform(0.1, 0.5), 0.5) * 0.85)
    elif pattern == "patches":
        field = noise(rng, h, w, scale * rng.uniform(0.22, 0.34))
        body = blend(base, light, step(field - 0.2))
        if rng.random() < 0.5:  # calico
            body = blend(body, other, step(noise(rng, h, w, scale * 0.25) - 0.5))
    elif pattern == "spots":
        body = blend(base, other, step(noise(rng, h, w, scale * rng.uniform(0.045, 0.07)) - 0.75, 0.3))
    elif pattern == "brindle":
        field = noise(rng, h, w, scale * 0.11, scale * 0.022)
        body = blend(base, other, step(field - 0.2, 0.8) * 0.75)
    else:
        body = base
    dark = other if pattern in ("points", "tabby") or rng.random() < 0.3 else base * 0.82
    if pattern in ("plain", "brindle") and rng.random() < 0.4:
        light = base * 1.06
    return {
        "coat": np.asarray(body * hairs, np.float32),
        "light": np.asarray(light * hairs, np.float32),
        "dark": np.asarray(dark * hairs, np.float32),
    }, pattern


def cloth(rng: np.random.Generator, h: int, w: int, colour: np.ndarray | None = None) -> np.ndarray:
    """Wallpaper, blankets, upholstery: f32[3, h, w]."""
    base = any_colour(rng) if colour is None else colour
    other = base * rng.uniform(0.7, 0.92) if rng.random() < 0.6 else any_colour(rng)
    yy, xx = _axes(h, w)
    period = rng.uniform(9, 40)
    kind = pick(rng, ("plain", "plain", "stripes", "dots", "plaid", "tiles", "blotches", "leopard", "fluffy"))
    share: np.ndarray = np.zeros((h, w), np.float32)
    turn = rng.uniform(0, math.pi)
    u, v = xx * math.cos(turn) + yy * math.sin(turn), yy * math.cos(turn) - xx * math.sin(turn)
    if kind == "stripes":
        share = step(np.sin(u * 2 * math.pi / period + 0.4 * noise(rng, h, w, 40)), 0.5)
    elif kind == "dots":
        share = step(np.cos(u * 2 * math.pi / period) * np.cos(v * 2 * math.pi / period) - 0.55, 0.3)
    elif kind == "plaid":
        share = 0.5 * step(np.sin(u * 2 * math.pi / period), 0.3) + 0.5 * step(np.sin(v * 2 * math.pi / period), 0.3)
    elif kind == "tiles":
        gap = np.minimum(xx % period, yy % period)
        share = step(1.6 - gap, 1.0)
    elif kind == "blotches":
        share = step(noise(rng, h, w, period * 1.3), 0.6)
    elif kind == "leopard":
        share = step(noise(rng, h, w, period * 0.35) - 0.7, 0.4)
    out = blend(base, other, share * rng.uniform(0.35, 1.0))
    if kind == "fluffy":
        out *= 1 + 0.09 * noise(rng, h, w, 5, 1.2)
    return np.asarray(out * (1 + 0.05 * noise(rng, h, w, 45) + 0.025 * noise(rng, h, w, 2)), np.float32)


def ground(rng: np.random.Generator, h: int, w: int, kind: str) -> np.ndarray:
    """What a pet stands on: f32[3, h, w]. `kind` is wood, carpet, tiles, grass or sand."""
    yy, xx = _axes(h, w)
    if kind == "wood":
        base = shifted(rng, pick(rng, ((168, 118, 74), (118, 78, 50), (204, 168, 122), (140, 120, 104))), 12)
        plank = rng.uniform(10, 22)
        row = np.floor(yy / plank)
        tone = np.take(rng.normal(1, 0.09, int(h / plank) + 2).astype(np.float32), row.astype(int))
        seams = np.maximum(step(1.1 - yy % plank, 0.8), step(1.1 - (xx + row * 71) % 90, 0.8))
        return np.asarray(base * (tone * (1 - 0.35 * seams) * (1 + 0.06 * noise(rng, h, w, 2, 30))))
    if kind == "tiles":
        size, shear = rng.uniform(22, 48), rng.uniform(-0.4, 0.4)
        x = xx + shear * yy
        odd = (np.floor(x / size) + np.floor(yy / (size * 0.6))) % 2
        gap = np.minimum(x % size, yy % (size * 0.6))
        base, other = any_colour(rng), any_colour(rng) if rng.random() < 0.4 else None
        out = blend(base, base * 0.88 if other is None else other, odd.astype(np.float32))
        return np.asarray(out * (1 - 0.25 * step(1.3 - gap, 0.8) + 0.03 * noise(rng, h, w, 3)))
    if kind == "grass":
        base = shifted(rng, pick(rng, ((104, 140, 62), (130, 150, 84), (150, 138, 82), (72, 108, 58))), 12)
        blades = noise(rng, h, w, 6, 1.5)
        return np.asarray(base * (1 + 0.15 * blades + 0.09 * noise(rng, h, w, 30)))
    if kind == "sand":
        base = shifted(rng, pick(rng, ((214, 188, 146), (226, 228, 234), (160, 154, 148))), 12)
        return np.asarray(base * (1 + 0.05 * noise(rng, h, w, 1.5) + 0.06 * noise(rng, h, w, 14, 50)))
    base = any_colour(rng)
    return np.asarray(base * (1 + 0.08 * noise(rng, h, w, 2) + 0.05 * noise(rng, h, w, 25)))
