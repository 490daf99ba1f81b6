"""Augmentation of whole batches on their device.

Augmentation parameters are a hash of (seed, epoch, sample index). So they are the same under any loader, batch size,
number of ranks or resume, and no random state has to be saved for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_MASK32 = 0xFFFFFFFF


OwnAugment = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A custom augmentation, of whole batches on their device: images f32[N, 3, H, W] in 0-1 and class indices
i64[N, H, W] (255 where a pixel does not count) to both, of the same shapes and dtypes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Strengths of the augmentation. Every amount is drawn uniformly from -x to x."""

    flip: bool = True
    """Flip left and right, half of the time."""
    flip_rows: bool = False
    """Flip top and bottom, half of the time."""
    right_angles: bool = False
    """Rotate by 0, 90, 180 or 270 degrees, a quarter of the time each."""
    degrees: float = 20.0
    """Rotation."""
    zoom: float = 0.5
    """Enlargement in powers: by a factor from 1 / (1 + zoom) to 1 + zoom, evenly in its logarithm."""
    shift: float = 0.15
    """Translation, as a share of each side."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4


def uniforms(indices: torch.Tensor, epoch: torch.Tensor, seed: int, streams: int) -> torch.Tensor:
    """Numbers in [0, 1) from a counter hash.

    The mixing function is `[16 21f0aaad 15 735a2d97 15]` of C. Wellons' hash prospector (bias 0.11); all products stay
    below 2**63, so int64 on any device gives the same bits.

    Args:
        indices: i64[N], sample indices.
        epoch: i64 scalar tensor on the same device (a tensor, so that a new epoch compiles nothing again).
        seed: the run's seed.
        streams: numbers wanted for each sample.

    Returns:
        f32[N, streams].
    """
    key = _mix32((epoch + 0x51ED27) & _MASK32) ^ (seed & _MASK32)
    key = _mix32(key) ^ ((seed >> 32) & _MASK32)
    sample = _mix32((indices & _MASK32) ^ _mix32(key))
    # One sum a stream, by constants: of a product with arange, Inductor (torch 2.11) makes 32-bit index arithmetic,
    # which Triton refuses for constants of this size.
    counters = torch.stack([sample + (k * 0x9E3779B9 & _MASK32) for k in range(1, streams + 1)], dim=1)
    return (_mix32(counters & _MASK32) >> 8).float() * 2**-24


def augment(
    x: torch.Tensor, masks: torch.Tensor, indices: torch.Tensor, epoch: torch.Tensor, *, seed: int, policy: Policy
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment each image, and move its mask with it.

    Args:
        x: f32[N, 3, H, W] in 0-1.
        masks: u8 or i64[N, H, W], class indices (IGNORE_INDEX stays as it is: masks are moved by nearest neighbour).
        indices: i64[N], sample indices.
        epoch: i64 scalar tensor.
        seed: the run's seed.
        policy: how far.

    Returns:
        Both, of the same shapes and dtypes; x stays in 0-1. What comes into view from outside is mirrored.
    """
    u = uniforms(indices, epoch, seed, 10) * 2 - 1
    height, width = x.shape[-2:]
    grid = F.affine_grid(_affine(u, height / width, policy), [x.shape[0], 1, height, width], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    moved = F.grid_sample(
        masks.unsqueeze(1).float(), grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    return _recolour(x, u, policy), moved.squeeze(1).to(masks.dtype)


def _affine(u: torch.Tensor, aspect: float, policy: Policy) -> torch.Tensor:
    """f32[N, 2, 3]: where each output point comes from, in grid_sample's coordinates of -1 to 1."""
    angle = u[:, 1] * (policy.degrees * torch.pi / 180)
    if policy.right_angles:
        angle = angle + torch.floor((u[:, 9] + 1) * 2) * (torch.pi / 2)
    scale = torch.exp2(u[:, 2] * math.log2(1 + policy.zoom))
    sign = torch.where(u[:, 0] < 0, -1.0, 1.0) if policy.flip else torch.ones_like(angle)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # Coordinates run from -1 to 1 on both sides whatever their lengths: without `aspect` a rotation would shear.
    row_x = torch.stack([sign * cos, -sign * sin * aspect, u[:, 3] * 2 * policy.shift], dim=1)
    row_y = torch.stack([sin / aspect, cos, u[:, 4] * 2 * policy.shift], dim=1)
    if policy.flip_rows:
        row_y = torch.where(u[:, 8:9] < 0, -row_y, row_y)
    return torch.stack([row_x, row_y], dim=1)


def _recolour(x: torch.Tensor, u: torch.Tensor, policy: Policy) -> torch.Tensor:
    brightness, contrast, saturation = (
        1 + u[:, k].view(-1, 1, 1, 1) * amount
        for k, amount in ((5, policy.brightness), (6, policy.contrast), (7, policy.saturation))
    )
    x = x * brightness
    centre = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - centre) * contrast + centre
    # Luma of ITU-R BT.601.
    grey = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]).unsqueeze(1)
    return ((x - grey) * saturation + grey).clamp(0, 1)


def _mix32(x: torch.Tensor) -> torch.Tensor:
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _MASK32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _MASK32
    return x ^ (x >> 15)
