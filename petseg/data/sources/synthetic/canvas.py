"""An image in the making, and what of it is visibly pet."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from petseg.data.sources.synthetic.shapes import Points

Kind = Literal["pet", "thing", "mark"]
"""What a shape does to the silhouette: `pet` adds to it, `thing` hides it, `mark` leaves it (eyes, whiskers)."""

_SHIFT = 4


def _fixed(points: Points, x0: int, y0: int) -> list[np.ndarray]:
    """OpenCV's fixed-point corners, from (x0, y0)."""
    return [np.round((points - np.array((x0, y0))) * (1 << _SHIFT)).astype(np.int32)]


class Canvas:
    """Shapes painted one over the other with smooth edges.

    Attributes:
        image: f32[3, H, W], RGB, 0 to 255 (light may take it beyond). Planes, so that inner loops run over pixels.
        pet: f32[H, W], 0 to 1: how much of each pixel is visibly pet.
        light: (x, y) of length 1 towards which surfaces are brighter.
    """

    def __init__(self, image: np.ndarray, light: tuple[float, float]) -> None:
        self.image = image
        self.pet = np.zeros(image.shape[1:], np.float32)
        self.light = light

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return int(self.image.shape[1])

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return int(self.image.shape[2])

    def fill(
        self,
        points: Points,
        paint: np.ndarray,
        *,
        kind: Kind = "thing",
        volume: float = 0.0,
        outline: float = 0.0,
        thickness: float = 1.5,
        opacity: float = 1.0,
    ) -> None:
        """Paint the inside of an outline.

        Args:
            points: f64[n, 2] in pixels; what lies off the image is cut.
            paint: one colour, f32[3, 1, 1]; a texture as large as the image, f32[3, H, W]; or a smaller swatch, laid
                from the top left of the shape and repeated.
            kind: what it does to the silhouette.
            volume: how much brighter it gets towards the light and darker away from it, as a share.
            outline: how much darker its edge is, 0 to 1.
            thickness: width of that edge in pixels.
            opacity: 0 to 1; a see-through `thing` hides nothing of the silhouette.
        """
        left, top, x0, y0, x1, y1 = self._window(points)
        if x0 >= x1 or y0 >= y1:
            return
        fixed = _fixed(points, x0, y0)
        cover = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(cover, fixed, (255,), cv2.LINE_AA, _SHIFT)
        alpha = cover.astype(np.float32) * np.float32(opacity / 255)
        colour = paint
        if paint.shape == self.image.shape:
            colour = paint[:, y0:y1, x0:x1]
        elif paint.size > 3:
            rows, columns = np.arange(y0 - top, y1 - top), np.arange(x0 - left, x1 - left)
            colour = paint.take(rows, axis=1, mode="wrap").take(columns, axis=2, mode="wrap")
        tone: np.ndarray | None = None
        if volume:
            size = max(x1 - x0, y1 - y0)
            gx = (np.arange(x0, x1, dtype=np.float32) - (x0 + x1) / 2) * (2 * volume * self.light[0] / size)
            gy = (np.arange(y0, y1, dtype=np.float32) - (y0 + y1) / 2) * (2 * volume * self.light[1] / size)
            tone = 1 + gx[None, :] + gy[:, None]
        if outline:
            line = np.zeros_like(cover)
            cv2.polylines(line, fixed, True, (255,), max(1, round(thickness)), cv2.LINE_AA, _SHIFT)
            edge = 1 - line.astype(np.float32) * np.float32(outline / 255)
            tone = edge if tone is None else tone * edge
        if tone is not None:
            colour = colour * tone.astype(np.float32)
        spot = self.image[:, y0:y1, x0:x1]
        spot += alpha * (colour - spot)
        pet = self.pet[y0:y1, x0:x1]
        if kind == "pet":
            np.maximum(pet, alpha, out=pet)
        elif kind == "thing" and opacity >= 0.99:
            pet *= 1 - alpha

    def stroke(self, points: Points, colour: np.ndarray, thickness: float = 1.0, opacity: float = 1.0) -> None:
        """Draw a line through the points: whiskers, a mouth, blades. It never changes the silhouette."""
        _, _, x0, y0, x1, y1 = self._window(points)
        if x0 >= x1 or y0 >= y1:
            return
        cover = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fixed = _fixed(points, x0, y0)
        cv2.polylines(cover, fixed, False, (255,), max(1, round(thickness)), cv2.LINE_AA, _SHIFT)
        spot = self.image[:, y0:y1, x0:x1]
        spot += cover.astype(np.float32) * np.float32(opacity / 255) * (colour - spot)

    def ink(self, outlines: list[Points], colour: np.ndarray, width: float) -> None:
        """Draw the contour that a pet's parts have in common, `width` pixels wide, as part of the pet.

        Paint the parts over it afterwards: only what lies outside all of them stays to be seen.
        """
        cover = np.zeros((self.height, self.width), np.uint8)
        for points in outlines:
            cv2.polylines(cover, _fixed(points, 0, 0), True, (255,), max(1, round(2 * width)), cv2.LINE_AA, _SHIFT)
        alpha = cover.astype(np.float32) * np.float32(1 / 255)
        self.image += alpha * (colour - self.image)
        np.maximum(self.pet, alpha, out=self.pet)

    def _window(self, points: Points) -> tuple[int, int, int, int, int, int]:
        """Left and top of the shape, then the part of the image that it can touch."""
        (left, top), (right, bottom) = np.floor(points.min(axis=0)) - 3, np.ceil(points.max(axis=0)) + 4
        x0, y0 = max(int(left), 0), max(int(top), 0)
        return int(left), int(top), x0, y0, min(int(right), self.width), min(int(bottom), self.height)

    def trimap(self, thickness: float) -> np.ndarray:
        """Oxford's codes of what stands on the canvas: u8[H, W] of 1 pet, 2 background, 3 border.

        Args:
            thickness: of the border on each side of the silhouette's edge, as a share of the image's side
                (of the square of the same area). The image's own frame is not an edge.
        """
        shape = (self.pet > 0.5).astype(np.uint8)
        r = max(1, round(thickness * float(np.sqrt(self.height * self.width))))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
        inner, outer = cv2.erode(shape, disc), cv2.dilate(shape, disc)
        return np.asarray(2 + outer - 2 * inner, np.uint8)
