"""The network and the input transform that a configuration describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.errors import PetsegError
from petseg.model.losses import Objective, OwnLoss
from petseg.model.networks import Network, OwnNetwork, build_model
from petseg.model.transform import InputTransform


def network_for(config: TrainConfig, classes: ClassTable, own: nn.Module | None = None) -> Network:
    """The network that a configuration describes, newly initialised, or a custom one; in its memory format.

    Raises:
        PetsegError: a network of one's own where the configuration describes another, or none where it needs one.
    """
    network: Network
    if own is not None:
        if config.arch != "own":
            raise PetsegError(f"network: this run has the network '{config.arch}'; leave your own out.")
        network = own if isinstance(own, OwnNetwork) else OwnNetwork(own)
    else:
        network = build_model(
            config.arch,
            classes=len(classes),
            width=config.width,
            depth=config.depth,
            max_width=config.max_width,
            dropout=config.dropout,
            norm=config.norm,
            upsample=config.upsample,
            stem=config.stem,
            head_width=config.head_width,
        )
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return network.to(memory_format=memory_format)


def transform_for(config: TrainConfig, mean: Sequence[float], std: Sequence[float]) -> InputTransform:
    """The input transform that belongs to `network_for`, with channel statistics f32[3] in 0-1."""
    return InputTransform(mean, std, apply=config.normalise, channels_last=config.channels_last)


def load_weights(network: Network, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put weights into a network.

    Raises:
        PetsegError: they are of another architecture.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise PetsegError(
            f"{path} is of another architecture than --arch, --width, --depth, --max-width, --stem, --head-width, "
            "--norm and --upsample describe: give the options of the run that it came from."
        ) from error


def objective_for(config: TrainConfig, weights: Sequence[float] | None = None, own: OwnLoss | None = None) -> Objective:
    """The loss of a run.

    Args:
        config: its options.
        weights: of the classes, in their order.
        own: for `loss = "own"`; without it, where only scores are wanted, cross-entropy is given.
    """
    kind = "ce" if config.loss == "own" and own is None else config.loss
    return Objective(kind, dice=config.dice, gamma=config.focal_gamma, weights=weights, own=own)
