"""Padding of images to the multiple of pixels that a network halves evenly."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pad_to_multiple(x: torch.Tensor, stride: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Images f[N, C, H, W] with zeros below and on the right up to multiples of `stride`, and (H, W) to crop to."""
    height, width = x.shape[-2:]
    bottom, right = -height % stride, -width % stride
    # Zeros, as the convolutions pad: the mean colour once the input is normalised.
    return (F.pad(x, (0, right, 0, bottom)) if bottom or right else x), (height, width)
