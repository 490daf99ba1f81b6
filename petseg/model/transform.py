"""From uint8 batches to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def to_float(images: torch.Tensor, *, channels_last: bool = True) -> torch.Tensor:
    """u8[N, H, W, 3] to f32[N, 3, H, W] in 0-1; channels_last is the layout that the bytes have already."""
    x = images.permute(0, 3, 1, 2).float() / 255
    return x if channels_last else x.contiguous()


def normalise(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(x - mean) / std for x f32[N, 3, H, W] and mean, std f32[3], both on x's device."""
    return (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def _three(values: Sequence[float]) -> torch.Tensor:
    red, green, blue = values
    return torch.tensor((red, green, blue))


class InputTransform(nn.Module):
    """From u8[N, H, W, 3] to the network's input; the same in training, evaluation and export."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        apply: bool = True,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.apply_statistics = apply
        self.channels_last = channels_last
        self.register_buffer("mean", _three(mean), persistent=False)
        self.register_buffer("std", _three(std), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """f32[N, 3, H, W] of u8[N, H, W, 3]."""
        return self.scale(to_float(images, channels_last=self.channels_last))

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """The same for images that are f32[N, 3, H, W] in 0-1 already."""
        return normalise(x, self.mean, self.std) if self.apply_statistics else x
