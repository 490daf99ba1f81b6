"""Boxes of images on a GPU, resized all at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from petseg.data.decode.boxes import OUTSIDE, Box

AT_ONCE = 512 << 20
"""Bytes of fp32 images that are resized in one go."""


def frame_on_device(images: Sequence[torch.Tensor], boxes: Sequence[Box], size: tuple[int, int]) -> torch.Tensor:
    """`boxes.frame_image` of many images, within 1 of 255 of it, on their device and without a host sync.

    The filter is separable, so each image is multiplied by two matrices: a few kernels for all of them, where a resize
    of each would start seven an image.

    Args:
        images: u8[H, W, 3], of any sizes.
        boxes: what is shown of each.
        size: (height, width) of the results.

    Returns:
        u8[N, height, width, 3].
    """
    found = torch.empty((len(images), *size, 3), dtype=torch.uint8, device=images[0].device)
    first = 0
    while first < len(images):
        last, height, width = first, 0, 0
        while last < len(images):
            height, width = max(height, images[last].shape[0]), max(width, images[last].shape[1])
            if last > first and (last + 1 - first) * 12 * height * width > AT_ONCE:
                break
            last += 1
        _frame_together(images[first:last], boxes[first:last], found[first:last])
        first = last
    return found


def _frame_together(images: Sequence[torch.Tensor], boxes: Sequence[Box], found: torch.Tensor) -> None:
    count, height, width, _ = found.shape
    shapes = [image.shape[:2] for image in images]
    sides = max(h for h, _ in shapes), max(w for _, w in shapes)
    canvas = torch.empty((count, *sides, 3), dtype=torch.uint8, device=found.device)
    torch._foreach_copy_([canvas[row, :h, :w] for row, (h, w) in enumerate(shapes)], list(images))
    numbers = np.array([(*box, *shape) for box, shape in zip(boxes, shapes, strict=True)], np.float32)
    tops, lefts, heights, widths, image_heights, image_widths = _sent(numbers, found.device).unbind(1)
    longest = max(box.height for box in boxes), max(box.width for box in boxes)
    down, inside_down = _triangle(tops, heights, image_heights, height, sides[0], longest[0])
    across, inside_across = _triangle(lefts, widths, image_widths, width, sides[1], longest[1])
    # What lies in no image weighs nothing, whatever stands there: bytes are finite numbers.
    rows = torch.bmm(down, canvas.flatten(2).float()).view(count, height, sides[1], 3)
    both = torch.bmm(across, rows.transpose(1, 2).flatten(2)).view(count, width, height, 3).transpose(1, 2)
    outside = OUTSIDE * (1 - inside_down.unsqueeze(2) * inside_across.unsqueeze(1)).unsqueeze(3)
    found.copy_((both + outside).round_().clamp_(0, 255))


def _triangle(
    start: torch.Tensor, length: torch.Tensor, image: torch.Tensor, n_out: int, n_in: int, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of Pillow's antialiased BILINEAR along one axis.

    Args:
        start: f32[N], where each box begins, in its image's pixels.
        length: f32[N], of each box.
        image: f32[N], of each image.
        n_out: pixels of the results.
        n_in: pixels of the canvas that the images stand at the beginning of.
        longest: of the boxes.

    Returns:
        f32[N, n_out, n_in], 0 beyond image and box; and their sums f32[N, n_out], 1 where a box lies in its image.
    """
    scale = (length / n_out).view(-1, 1, 1)
    reach = scale.clamp(min=1)
    # Centres of the results, from the centre of a box's first pixel on.
    centres = (torch.arange(n_out, device=start.device).view(1, -1, 1) + 0.5) * scale - 0.5

    def taps(positions: torch.Tensor) -> torch.Tensor:
        weights = (1 - (positions - centres).abs() / reach).clamp_(min=0)
        return weights * ((positions >= 0) & (positions < length.view(-1, 1, 1)))

    total = taps(torch.arange(longest, device=start.device).view(1, 1, -1)).sum(2, keepdim=True)
    pixels = torch.arange(n_in, device=start.device).view(1, 1, -1)
    weights = taps(pixels - start.view(-1, 1, 1)) * (pixels < image.view(-1, 1, 1)) / total
    return weights, weights.sum(2)


def _sent(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy numbers to a device without waiting for it."""
    here = torch.from_numpy(values)
    return here if device.type == "cpu" else here.pin_memory().to(device, non_blocking=True)
