"""What the device can do, and steps of the networks: the notebook's loop, petseg's, and nnU-Net's setting."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.gpu.measure import DEVICE, ON_GPU, SEED, Make, Once, Plan, compare, emit, fail, peers, settle
from benchmarks.gpu.roofline import roofline_seconds
from petseg.classes import OXFORD
from petseg.config import resolve
from petseg.data.loaders.loader import Batch
from petseg.model.build import network_for
from petseg.training.auto import training_flops

CEILING = "What the device can do at most: "
NNUNET, NNUNET_ON_A100 = "192x160, batch 128", 1345.0
"""nnU-Net 2D with DALI and AMP: its published images/s on one A100, of a U-Net of this many pixels."""

LADDER = ("channels_last", "bf16", "fused", "compile", "graphs")
NETWORKS: dict[str, dict[str, Any]] = {
    "default, 128 px": {},
    "default, 256 px": {"size": "256"},
    "width 32, 256 px": {"width": 32, "size": "256"},
    "width 64, 256 px": {"width": 64, "size": "256"},
    "oxford, 256 px": {"recipe": "oxford", "size": "256"},
    "the notebook's, 100 px": SEED,
}
"""Networks whose rooflines are said."""

MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.26, 0.27)


def ceilings(plan: Plan) -> None:
    """A bf16 matrix product and a copy, as large as it takes to fill the device."""
    side = 8192 if ON_GPU else 512
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 256, ((1 << 31) if ON_GPU else 1 << 22,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    works: tuple[tuple[str, str, Callable[[], torch.Tensor], float], ...] = (
        ("bf16 matrix product", "TFLOP/s", lambda: torch.mm(a, b), 2 * side**3 / 1e12),
        ("copy on the device", "GB/s", lambda: target.copy_(source), 2 * len(source) / 1e9),
    )
    reached = dict[str, float]()
    for name, unit, work, amount in works:
        found = []
        for _ in range(plan.repeats + 1):
            settle()
            began = time.perf_counter()
            for _ in range(20):
                work()
            settle()
            found.append(20 * amount / (time.perf_counter() - began))
        emit(name, found[1:], unit=unit, chart=f"{CEILING}{name}", kind="ceiling")
        reached[name] = statistics.median(found[1:])
    for name, options in NETWORKS.items():
        config = resolve(options)
        height, width = config.height_width
        network = network_for(config, OXFORD)
        seconds = roofline_seconds(
            network, height, width, flops=1e12 * reached["bf16 matrix product"],
            bandwidth=1e9 * reached["copy on the device"],
        )  # fmt: skip
        flops = training_flops(network, height, width)
        share = flops / seconds / (1e12 * reached["bf16 matrix product"])
        emit(
            name, [1 / seconds], chart="Rooflines: what no step can pass", kind="ceiling", gflop_an_image=flops / 1e9,
            share=share, detail=f"{100 * share:.0f}% of the matrix product",
        )  # fmt: skip


def drawn(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels u8[batch, height, width, 3] and codes u8[batch, height, width], on the CPU."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=g)
    return images, torch.randint(1, 4, (batch, height, width), dtype=torch.uint8, generator=g)


def our_step(options: Mapping[str, Any], *, compiled: bool) -> Make:
    """The step of petseg as a run of it has it."""

    def make() -> tuple[Once, dict[str, Any]]:
        config = resolve({"compile": "on" if compiled else "off", **options})
        height, width = config.height_width
        images, codes = drawn(config.batch_size, height, width)
        modules = peers("_training")
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        step = modules.petseg_step(config, OXFORD, MEAN, STD)
        batch = Batch(images.to(DEVICE), codes.to(DEVICE), torch.arange(config.batch_size, device=DEVICE), OXFORD)
        step(batch, modules.EPOCH)
        loss = step.mean_loss()
        gflop = training_flops(step.network, height, width) / 1e9

        def once() -> int:
            step(batch, modules.EPOCH)
            return config.batch_size

        return once, {"first_loss": loss, "gflop_an_image": gflop, "memory_mb": modules.memory_mb}

    return make


def notebook_step(recipe: str, size: int, batch: int, changes: tuple[str, ...]) -> Make:
    """The notebook's loop with changes to it."""

    def make() -> tuple[Once, dict[str, Any]]:
        modules = peers("_training")
        net = modules.network(resolve({"recipe": recipe}), OXFORD)
        gflop = training_flops(net, size, size) / 1e9
        images, codes = drawn(batch, size, size)
        floats = (images.permute(0, 3, 1, 2).contiguous() / 255).to(DEVICE)
        one_hot = torch.stack([codes == code for code in OXFORD.codes], 1).to(DEVICE, torch.float32)
        step = modules.notebook_loop(net, changes)
        loss = step(floats, one_hot)

        def once() -> int:
            step(floats, one_hot)
            return batch

        return once, {"first_loss": loss, "gflop_an_image": gflop}

    return make


def ladder(plan: Plan) -> None:
    """The notebook's network, from its own loop to petseg's."""
    batch, size = (32, 100) if ON_GPU else (2, 16)
    rungs = [LADDER[:n] for n in (0, 1, 2, 3, 5)]
    compare(
        plan,
        f"One step of the notebook's network, {size} px, batch {batch}",
        [
            *(
                (
                    "the notebook's loop" if not each else f"+ {each[-1]}",
                    "library" if each else "notebook",
                    notebook_step("seed", size, batch, each),
                )
                for each in rungs
                if ON_GPU or "compile" not in each
            ),
            (
                "petseg, no graph",
                "petseg",
                our_step({**SEED, "size": str(size), "batch_size": batch, "cuda_graphs": False}, compiled=False),
            ),
            ("petseg", "petseg", our_step({**SEED, "size": str(size), "batch_size": batch}, compiled=False)),
        ],
    )


def seed(plan: Plan) -> None:
    """The notebook's network at larger batches."""
    sizes = (128, 512, 1024) if ON_GPU else (2,)
    base = dict(SEED) if ON_GPU else {**SEED, "size": "16"}
    compare(
        plan,
        f"Steps of the notebook's network, {base['size']} px, by batch",
        [
            *((f"petseg, batch {n}", "petseg", our_step({**base, "batch_size": n}, compiled=False)) for n in sizes),
            *(
                (f"petseg, compiled, batch {n}", "petseg", our_step({**base, "batch_size": n}, compiled=True))
                for n in sizes[1:2]
            ),
        ],
    )


def unet(plan: Plan) -> None:
    """The U-Net of petseg, its recipes, and nnU-Net's published setting."""
    small: dict[str, Any] = {} if ON_GPU else {"size": "32", "batch_size": 2}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("default, batch 16", {}),
        ("default, batch 128", {"batch_size": 128}),
        ("default, batch 1024", {"batch_size": 1024}),
        ("oxford", {"recipe": "oxford"}),
        (
            f"5 levels, 32 channels, {NNUNET}",
            {"width": 32, "max_width": 512, "stem": 1, "size": "192x160", "batch_size": 128},
        ),
    ]
    compare(
        plan,
        "Steps of petseg's U-Net",
        [
            *((name, "petseg", our_step({**options, **small}, compiled=False)) for name, options in cases),
            *(
                (f"{name}, compiled", "petseg", our_step({**options, **small}, compiled=True))
                for name, options in (cases[1], cases[4])
                if ON_GPU
            ),
        ],
    )


def optimisers(plan: Plan) -> None:
    """Muon beside AdamW, at small and large batches."""
    small: dict[str, Any] = {} if ON_GPU else {"size": "32"}
    compare(
        plan,
        "Steps by optimiser, default network",
        [
            (
                f"{optimizer}, batch {n}",
                "petseg",
                our_step({"optimizer": optimizer, "batch_size": n, **small}, compiled=False),
            )
            for n in ((16, 128, 1024) if ON_GPU else (2,))
            for optimizer in ("adamw", "muon")
        ],
    )


def compiled(plan: Plan) -> None:
    """Networks at 256 px, compiled and not."""
    small: dict[str, Any] = {} if ON_GPU else {"size": "32", "batch_size": 2}
    base: dict[str, Any] = {"size": "256", "batch_size": 128}
    cases: dict[str, dict[str, Any]] = {
        "default": base,
        "width 32": {**base, "width": 32},
        "width 64": {**base, "width": 64},
        "oxford": {"recipe": "oxford"},
    }
    for name, options in cases.items():
        compare(
            plan,
            f"Steps at 256 px: {name}",
            [
                (f"{name}{', compiled' * on}", "petseg", our_step({**options, **small}, compiled=on))
                for on in ((False, True) if ON_GPU else (False,))
            ],
        )


def profile(_: Plan) -> None:
    """Which kernels a step of the notebook's network and one of the U-Net spend their time in."""
    small: dict[str, Any] = {} if ON_GPU else {"size": "32", "batch_size": 2}
    cases = {
        "seed, batch 512": ({**SEED, "batch_size": 512, **small}, False),
        "seed, batch 512, compiled": ({**SEED, "batch_size": 512, **small}, True),
        "default, batch 128": ({"batch_size": 128, **small}, False),
        "default, batch 128, compiled": ({"batch_size": 128, **small}, True),
        "width 64, 256 px, batch 128, compiled": ({"width": 64, "size": "256", "batch_size": 128, **small}, True),
    }
    kind = torch.profiler.ProfilerActivity.CUDA if ON_GPU else torch.profiler.ProfilerActivity.CPU
    for title, (options, compiled) in cases.items():
        if compiled and not ON_GPU:
            continue
        try:
            once = our_step(options, compiled=compiled)()[0]
            for _turn in range(3):
                once()
            settle()
            with torch.profiler.profile(activities=[kind]) as found:
                for _turn in range(3):
                    once()
                settle()
        except Exception as error:
            fail(title, error, chart="Profile")
            continue
        attribute = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
        events = sorted(found.key_averages(), key=lambda event: -float(getattr(event, attribute)))
        total = sum(float(getattr(event, attribute)) for event in events)
        kernels = [
            {
                "kernel": event.key[:120],
                "pct": round(100 * float(getattr(event, attribute)) / total, 1),
                "calls": event.count // 3,
            }
            for event in events[:16]
        ]
        emit(title, [total / 3000], unit="ms", chart="Profile of one step", kind="petseg", kernels=kernels)
