"""The `auto` options, resolved once for a run and recorded in it."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import logging
import os
import platform
import shutil
import sys
import time
from typing import Any, Literal, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from petseg.config import TrainConfig
from petseg.data.loaders.build import keeps_images, resolve_loader
from petseg.device import World, resolve_amp
from petseg.errors import OptionError
from petseg.model.networks import Network
from petseg.system import available_memory

COMPILE_SECONDS = 120.0
"""Compiling took 25 s on an H200 and saved half of a step: it pays for runs of this length. On a CPU a compiled step
takes twice as long (torch 2.15.0, benchmarks/LOG.md), so only those who ask for it get it."""

GPU_STEP_SECONDS, GPU_FLOPS_PER_S = 0.002, 60e12
"""A step that is not compiled takes this long on an H200, however small it is; the rate is that of petseg's U-Net."""

CACHE_SHARE = {"cuda": 1 / 4, "cpu": 1 / 16}
"""Of the free memory: the rest of a GPU's is the network's, whose need is known only later."""


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of glibc's malloc.h."""


def tune_process(device: torch.device) -> None:
    """Settings of the whole process that make its training faster.

    - On a GPU: fp32 is multiplied in TF32, and convolutions are chosen by timing them.
    - On a CPU with glibc: memory that was freed is kept. Else every step gives its large blocks back to the system and
      faults them in anew, a seventh of its time for a twentieth less memory.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    elif platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def missing_compiler(device: torch.device) -> str | None:
    """Why torch.compile cannot work here; None if it can."""
    # Inductor takes CXX or the platform's own and looks no further; Triton builds its launcher in C.
    cxx = (os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"),)
    wanted = (os.environ.get("CC", "gcc"), "clang") if device.type == "cuda" else cxx
    if not any(shutil.which(name) for name in wanted):
        return "no C compiler was found" if device.type == "cuda" else "no C++ compiler was found"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def failing_compiler(device: torch.device) -> str | None:
    """The error of compiling a function of one line here, None if that works. Takes some seconds."""
    # It warns on a machine without a GPU that there is none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # A number of its own, so that no cache holds the kernel: it would hide a compiler that is broken now.
    number = time.time()
    try:
        torch.compile(lambda x: x.sin() + number)(torch.ones(8, device=device))
    except Exception as error:  # dynamo, inductor, Triton and compilers each raise their own
        return f"torch.compile fails on this machine ({str(error).splitlines()[0]})"
    return None


def resolve_compile(
    choice: str, device: torch.device, network: Network, config: TrainConfig, samples: int
) -> tuple[bool, str | None]:
    """Whether to compile, and a sentence if that is not what was asked for.

    Args:
        choice: `auto`, `on` or `off`.
        device: where the steps run.
        network: on any device; its forward FLOPs are counted on `meta`.
        config: input size and batch size.
        samples: training samples of the whole run on this rank.
    """
    if choice == "off":
        return False, None
    if choice == "auto" and (device.type == "cpu" or not _pays(network, config, samples)):
        return False, None
    if reason := missing_compiler(device) or failing_compiler(device):
        return False, f"{reason}, so torch.compile is off; training continues without it."
    return True, None


def resolve_cache(
    choice: Literal["auto", "none", "host", "device"], device: torch.device, needed: int, ranks: int
) -> Literal["none", "host", "device"]:
    """`auto` means the device's memory, where the samples take `CACHE_SHARE` of what is free of it or less.

    On a CPU, decoding takes cores away from the steps. There the memory is other people's too, so the share is smaller,
    and several ranks would need /dev/shm, of which containers have little.

    Args:
        choice: `--cache`.
        device: where the steps run.
        needed: bytes of all samples that would be kept.
        ranks: processes that train together.
    """
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "device" if needed <= CACHE_SHARE["cuda"] * torch.cuda.mem_get_info(device)[0] else "none"
    return "host" if ranks == 1 and needed <= CACHE_SHARE["cpu"] * available_memory() else "none"


def resolve_optimizer(config: TrainConfig) -> Literal["muon", "adamw", "adam"]:
    """`auto` is Muon, but AdamW for what starts from trained weights: what AdamW had taught them, Muon undoes.

    By how much, benchmarks/LOG.md says. What a network of one's own has learned before cannot be told.
    """
    if config.optimizer != "auto":
        return config.optimizer
    return "adamw" if config.encoder_weights or config.init_from or config.arch == "own" else "muon"


def settle_data(config: TrainConfig, world: World, cached_bytes: int) -> TrainConfig:
    """Settle the `auto` options of the data.

    Args:
        config: what was asked for.
        world: the ranks.
        cached_bytes: of all samples that a cache would keep.
    """
    loader = resolve_loader(config.loader, world.device)
    keeps = config.fit != "crop" or (keeps_images(loader, world.device) and world.size == 1)
    if not keeps and config.cache not in {"auto", "none"}:
        raise OptionError(
            "cache",
            "for crops, whole images are kept by --loader webdataset on a CPU with one rank only: leave it out.",
        )
    cache = resolve_cache(config.cache, world.device, cached_bytes, world.size) if keeps else "none"
    return dataclasses.replace(config, loader=cast(Any, loader), cache=cache)


def settle_step(config: TrainConfig, world: World, network: Network, samples: int) -> tuple[TrainConfig, list[str]]:
    """Settle the `auto` options of the step.

    Args:
        config: what was asked for.
        world: the ranks.
        network: on any device.
        samples: training samples of the whole run on each rank.

    Returns:
        (the configuration; sentences for the person who started the run).
    """
    compiled, note = resolve_compile(config.compile, world.device, network, config, samples)
    settled = dataclasses.replace(
        config,
        amp=resolve_amp(config.amp, world.device),
        compile="on" if compiled else "off",
        optimizer=resolve_optimizer(config),
    )
    return settled, [note] if note else []


def training_flops(network: Network, height: int, width: int) -> float:
    """Floating-point operations of one training sample: three times the forward pass, whose products are counted."""
    import copy

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).to("meta").eval()(torch.empty(1, 3, height, width))
    return 3.0 * float(counter.get_total_flops())


def _pays(network: Network, config: TrainConfig, samples: int) -> bool:
    """Whether a run on a GPU takes long enough to compile its step."""
    if config.max_minutes:
        return 60 * config.max_minutes >= COMPILE_SECONDS
    flops = samples * training_flops(network, *config.height_width)
    return max(samples / config.batch_size * GPU_STEP_SECONDS, flops / GPU_FLOPS_PER_S) >= COMPILE_SECONDS
