"""Optimiser, learning-rate schedule and EMA of the weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from petseg.config import TrainConfig
from petseg.model.smp import SmpNetwork
from petseg.training.muon import Muon, filters_of


def build_optimizer(network: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Muon, fused AdamW or fused Adam, of a settled configuration. Weight decay spares biases and normalisation.

    An encoder that starts from trained weights learns at `encoder_lr_scale` of the rate.
    """
    capturable = device.type == "cuda"
    choice = config.optimizer
    learned = bool(config.encoder_weights or config.init_from)
    encoder = set(network.encoder.parameters()) if isinstance(network, SmpNetwork) and learned else set()
    filters = set(filters_of(network)) if choice == "muon" else set()
    parts = [([p for p in network.parameters() if p not in encoder], 1.0)]
    if encoder:
        parts.append(([p for p in network.parameters() if p in encoder], config.encoder_lr_scale))
    groups: list[dict[str, Any]] = []
    for parameters, scale in parts:
        learning = [p for p in parameters if p.requires_grad]
        decayed = [p for p in learning if p.ndim > 1 and p not in filters]
        spared = [p for p in learning if p.ndim <= 1]
        if choice == "adam":
            groups.append({"params": [*decayed, *spared], "lr_scale": scale})
        else:
            groups.append({"params": decayed, "weight_decay": config.weight_decay, "lr_scale": scale})
            groups.append({"params": spared, "weight_decay": 0.0, "lr_scale": scale})
        if chosen := [p for p in learning if p in filters]:
            groups.append({"params": chosen, "weight_decay": config.weight_decay, "lr_scale": scale, "filters": True})
    # A tensor on the device, so that a new rate neither syncs nor invalidates a captured graph.
    for group in groups:
        group["lr"] = torch.tensor(config.lr, device=device) if capturable else config.lr
    if choice == "muon":
        return Muon(groups, capturable=capturable)
    assert choice in {"adamw", "adam"}, f"'{choice}' is not settled"
    kind = torch.optim.AdamW if choice == "adamw" else torch.optim.Adam
    return kind(groups, fused=True, capturable=capturable)


@torch.no_grad()
def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put back what `state_dict` gave, into the tensors that are there: a captured step uses these.

    A state of before the first step holds none, which means zeros.
    """
    if not optimizer.state:
        rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(saved)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            # As this device needs them, wherever the checkpoint was written.
            group["lr"], group["capturable"] = rate, optimizer.defaults["capturable"]
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            if place in saved["state"]:
                value.copy_(saved["state"][place][name])
            else:
                value.zero_()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to its share of `rate`."""
    for group in optimizer.param_groups:
        scaled = rate * group["lr_scale"]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def rate_at(progress: float, config: TrainConfig) -> float:
    """The learning rate when a share `progress` (0 to 1) of the run's samples has been seen.

    A function of samples, not of steps: another batch size or number of ranks keeps the schedule's shape.
    `onecycle` rises by a cosine over 30% and falls by one to zero (Smith and Topin, 2018); `cosine` rises linearly
    over `warmup` and falls by a cosine to zero (Loshchilov and Hutter, 2017).
    """
    progress = min(max(progress, 0.0), 1.0)
    if config.schedule == "constant":
        return config.lr
    rise = 0.3 if config.schedule == "onecycle" else config.warmup
    if progress < rise:
        x = progress / rise
        up = (1 - math.cos(math.pi * x)) / 2 if config.schedule == "onecycle" else x
        return config.lr * (0.04 + 0.96 * up)
    x = (progress - rise) / (1 - rise)
    return config.lr * (1 + math.cos(math.pi * x)) / 2


@dataclass(slots=True)
class Course:
    """Position along the learning-rate schedule, from 0 to 1, by the samples seen."""

    end: int
    """Samples at which it is 1."""
    since: int = 0
    """Samples at which the end was last moved."""
    share_then: float = 0.0
    """How far it was there."""

    def share(self, samples: int) -> float:
        """How far it is at so many samples: never less than before, wherever the end was moved meanwhile."""
        if samples >= self.end:
            return 1.0
        return self.share_then + (1 - self.share_then) * (samples - self.since) / (self.end - self.since)

    def end_at(self, end: int, samples: int) -> None:
        """Move the end, `samples` having been seen."""
        self.share_then, self.since, self.end = self.share(samples), samples, end


class Ema:
    """Exponential moving average of a network's weights and buffers, kept in a network of its own.

    The decay warms up as min(decay, (1 + t) / (10 + t)), so that early averages are not the initial weights. Works on
    the unwrapped module: names that compile or DDP prefix would never match.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        others = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._mine, self._theirs = [a for a, _ in floats], [b for _, b in floats]
        self._copies, self._originals = [a for a, _ in others], [b for _, b in others]
        self._weight = 1.0
        device = next(network.parameters()).device
        # On the device, where a captured step finds the present one.
        self._held = torch.ones((), device=device) if device.type == "cuda" else None

    def advance(self) -> None:
        """Set the share of the network's present weights in the next average."""
        self.updates += 1
        self._weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self._held is not None:
            self._held.fill_(self._weight)

    @torch.no_grad()
    def average(self) -> None:
        """Update the average with the network's present weights, after `advance`. No host sync."""
        if self._held is None:
            torch._foreach_lerp_(self._mine, self._theirs, self._weight)
        else:
            differences = torch._foreach_sub(self._theirs, self._mine)
            torch._foreach_mul_(differences, self._held)
            torch._foreach_add_(self._mine, differences)
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)
