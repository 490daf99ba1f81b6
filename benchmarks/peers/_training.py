"""The loops that step and train compare: the teaching notebook's, and petseg's as `petseg-train` has it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.device import World, resolve_device
from petseg.model.build import network_for, transform_for
from petseg.training import auto
from petseg.training.step import TrainStep
from petseg.training.telemetry import peak_memory_mb

DEVICE = resolve_device("auto")
EPOCH = torch.tensor(0, device=DEVICE)
ENDLESS = 10**9
"""Samples of a run so long that its learning rate does not move while it is measured."""


def network(config: TrainConfig, classes: ClassTable) -> nn.Module:
    """With the same weights in every contender."""
    torch.manual_seed(0)
    return network_for(config, classes)


def notebook_loop(net: nn.Module, changes: tuple[str, ...] = ()) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The notebook's step, with changes to it.

    Args:
        net: its network, or another one.
        changes: of `channels_last`, `bf16`, `fused`, `compile`, `graphs`.

    Returns:
        Learns from images f32[N, 3, H, W] in 0-1 and one-hot masks f32[N, C, H, W]; gives the loss.
    """
    if "graphs" in changes and DEVICE.type != "cuda":
        raise SystemExit("CUDA graphs need a GPU")
    if "compile" in changes and (reason := auto.missing_compiler(DEVICE)):
        raise SystemExit(reason)
    layout = torch.channels_last if "channels_last" in changes else torch.contiguous_format
    net = net.to(DEVICE, memory_format=layout).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001, fused=True if "fused" in changes else None)

    def forward(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled="bf16" in changes):
            outputs = net(images)
        return criterion(outputs, masks)

    if "compile" in changes:
        forward = torch.compile(forward, mode="reduce-overhead" if "graphs" in changes else None)

    def step(images: torch.Tensor, masks: torch.Tensor) -> float:
        images, masks = images.to(DEVICE, memory_format=layout), masks.to(DEVICE).float()
        optimizer.zero_grad()
        loss = forward(images, masks)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def petseg_step(
    config: TrainConfig, classes: ClassTable, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> TrainStep:
    """The step of petseg on one device, with `auto` resolved as in a run of it."""
    auto.tune_process(DEVICE)
    net = network(config, classes)
    world = World(rank=0, size=1, device=DEVICE)
    config, notes = auto.settle_step(config, world, net, ENDLESS)
    if notes:
        raise SystemExit(notes[0])
    step = TrainStep(
        net.to(DEVICE),
        config,
        classes,
        transform_for(config, mean, std).to(DEVICE),
        world,
        total_samples=ENDLESS,
        note=sys.exit,
    )
    step.capture()
    return step


def settle() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def memory_mb() -> float:
    """The most that was in use so far."""
    return peak_memory_mb(DEVICE)
