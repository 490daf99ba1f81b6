"""How often each value occurs in an image."""

from __future__ import annotations

import cv2
import numpy as np

_HISTOGRAM_PIXELS = 1 << 24


def histogram(pixels: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel of u8[H, W] or u8[H, W, C]: i64[C, 256]."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    total = np.zeros((channels, 256), np.int64)
    # OpenCV counts in float32, exact up to 2^24: hence the bands.
    step = max(1, _HISTOGRAM_PIXELS // (pixels.shape[1] + 1))
    for first in range(0, pixels.shape[0], step):
        band = pixels[first : first + step]
        for channel in range(channels):
            total[channel] += cv2.calcHist([band], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
    return total
