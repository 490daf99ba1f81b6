"""Augmentation of a run's batches, by its options or a custom function; and other custom parts."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import nn

from petseg.config import TrainConfig
from petseg.model.augment import OwnAugment, Policy, augment
from petseg.model.losses import OwnLoss

ZOOM, SHIFT = 0.5, 0.15
"""Of whole images, where `zoom` and `shift` are not given."""


class Own(NamedTuple):
    """Functions given from Python in place of a run's options."""

    network: nn.Module | None = None
    loss: OwnLoss | None = None
    augment: OwnAugment | None = None


NOTHING = Own()
"""All by the options."""


class Augment(Protocol):
    """The augmentation of a step."""

    def __call__(
        self, x: torch.Tensor, masks: torch.Tensor, indices: torch.Tensor, epoch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images f32[N, 3, H, W] in 0-1 and class indices u8[N, H, W] of samples i64[N], to both."""
        ...


def policy_of(config: TrainConfig) -> Policy:
    """The strengths of augmentation of a run's options."""
    is_crop = config.fit == "crop"
    return Policy(
        flip=config.hflip,
        flip_rows=config.vflip,
        right_angles=config.right_angles,
        degrees=config.rotate,
        zoom=config.zoom if config.zoom >= 0 else 0.0 if is_crop else ZOOM,
        shift=config.shift if config.shift >= 0 else 0.0 if is_crop else SHIFT,
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
    )


def policy_augment(config: TrainConfig) -> Augment:
    """The augmentation of a run's options; none under `--no-augment`."""
    policy, seed = policy_of(config), config.seed

    def by_policy(
        x: torch.Tensor, masks: torch.Tensor, indices: torch.Tensor, epoch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return augment(x, masks, indices, epoch, seed=seed, policy=policy) if config.augment else (x, masks)

    return by_policy


def own_augment(own: OwnAugment) -> Augment:
    """A custom function, which gets neither samples nor epochs."""

    def by_own(
        x: torch.Tensor, masks: torch.Tensor, indices: torch.Tensor, epoch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del indices, epoch
        return own(x, masks.long())

    return by_own
