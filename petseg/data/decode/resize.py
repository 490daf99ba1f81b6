"""The one resize: an antialiased triangle filter for images, nearest for masks, both in integers."""

from __future__ import annotations

import functools
import threading

import cv2
import numpy as np

try:
    import cykooz_resizer
except ImportError:  # there is no wheel for this machine
    cykooz_resizer = None

_thread = threading.local()
_TRIANGLE = cykooz_resizer and cykooz_resizer.ResizeOptions(
    resize_alg=cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear), use_alpha=False
)


@functools.lru_cache(maxsize=4096)
def nearest_indices(n_in: int, n_out: int) -> np.ndarray:
    """Source positions of a nearest resize, `((2*i + 1) * n_in) // (2 * n_out)`: i64[n_out], read-only.

    Pixel centres mapped in integers, so that no two libraries can round a tie differently.
    """
    indices = ((2 * np.arange(n_out, dtype=np.int64) + 1) * n_in) // (2 * n_out)
    indices.setflags(write=False)
    return indices


@functools.lru_cache(maxsize=4096)
def _opencv_agrees(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether OpenCV's INTER_NEAREST_EXACT takes the positions of `nearest_indices`; for most sizes it does."""
    return _agrees(height, new_height) and _agrees(width, new_width)


def _agrees(n_in: int, n_out: int) -> bool:
    positions = np.arange(n_in, dtype=np.float32)[None]
    taken = cv2.resize(positions, (n_out, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    return bool((taken == nearest_indices(n_in, n_out)).all())


def resize_nearest(codes: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """Resize a mask by nearest neighbour: every value of the result is one of the mask's.

    Args:
        codes: u8[H, W].
        height: rows of the result.
        width: columns of the result.
        out: u8[height, width], contiguous, to write into.

    Returns:
        u8[height, width]; `out` where it was given.
    """
    old_height, old_width = codes.shape
    if _opencv_agrees(old_height, old_width, height, width):
        return cv2.resize(codes, (width, height), dst=out, interpolation=cv2.INTER_NEAREST_EXACT)
    rows, columns = nearest_indices(old_height, height), nearest_indices(old_width, width)
    return np.take(codes[rows], columns, axis=1, out=out, mode="clip")  # clip: numpy buffers `out` under "raise"


def resize_image(image: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    """An image at another size, squashed to it, by a triangle filter: within 1 of 255 of Pillow's BILINEAR.

    All arithmetic is in integers, so every instruction set gives the same bytes: `resize_by_formula` says which. What
    computes it here is cykooz.resizer (the Rust crate fast_image_resize) where there is a wheel of it.

    Args:
        image: u8[H, W, 3], contiguous or not.
        height: rows of the result.
        width: columns of the result.
        out: u8[height, width, 3], contiguous, to write into.

    Returns:
        u8[height, width, 3]; `out` where it was given.
    """
    if image.shape[:2] == (height, width):
        return _copied(image, out)
    if cykooz_resizer is None:
        return _copied(resize_by_formula(image, height, width), out)
    if not hasattr(_thread, "resizer"):
        _thread.resizer = cykooz_resizer.Resizer()  # it keeps memory between its passes, for one thread
    old_height, old_width = image.shape[:2]
    source = cykooz_resizer.ImageData(old_width, old_height, cykooz_resizer.PixelType.U8x3, image.tobytes())
    target = cykooz_resizer.ImageData(width, height, cykooz_resizer.PixelType.U8x3)
    _thread.resizer.resize(source, target, _TRIANGLE)
    return _copied(np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, 3), out)


def resize_by_formula(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`resize_image` by its formula, at a tenth of its speed: u8[H, W, 3] to u8[height, width, 3].

    Pillow's resampling with coefficients of 16 bits, as Pillow-SIMD has it: columns first, then rows, each rounded to
    8 bits. Sums of products of integers are exact in float64, in whatever order a matrix product takes them.
    """
    for axis, length in ((0, height), (1, width)):
        if image.shape[axis] != length:
            weights, precision = _triangle(image.shape[axis], length)
            sums = np.tensordot(weights, image, (1, axis)).astype(np.int64) + (1 << (precision - 1))
            image = np.moveaxis((sums >> precision).clip(0, 255).astype(np.uint8), 0, axis)
    return np.ascontiguousarray(image)


@functools.lru_cache(maxsize=8)  # large ones take megabytes
def _triangle(n_in: int, n_out: int) -> tuple[np.ndarray, int]:
    """Weights f64[n_out, n_in], whole numbers, and the bits that they are shifted by.

    Output i is centred at (i + 1/2) n_in / n_out; the triangle reaches max(n_in / n_out, 1) to each side. The weights
    of each output add up to one, and take as many bits as let the largest of them fit in 16 with its sign.
    """
    scale = n_in / n_out
    reach = max(scale, 1.0)
    weights = np.zeros((n_out, n_in))
    for i in range(n_out):
        centre = (i + 0.5) * scale
        first, end = max(int(np.floor(centre - reach)), 0), min(int(np.ceil(centre + reach)), n_in)
        taps = 1 - np.abs((np.arange(first, end) - (centre - 0.5)) * (1 / reach))
        taps[taps < 0] = 0
        # Added from left to right, as in a loop; NumPy's own sum goes another way, and may round differently.
        weights[i, first:end] = taps / np.add.accumulate(taps)[-1]
    largest = weights.max()
    precision = next(bits for bits in range(22) if bits == 21 or _rounded(largest * 2 ** (bits + 1)) >= 1 << 15)
    return _rounded(weights * 2**precision), precision


def _rounded(values: np.ndarray | float) -> np.ndarray:
    """Rounded to whole numbers, halves away from zero; none are negative."""
    return np.floor(np.asarray(values) + 0.5)


def _copied(image: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return image
    out[:] = image
    return out
