"""Loaders and caches beside DALI's own reader and torchvision's CUDA decoder."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from benchmarks.data import Cell, Reference
from benchmarks.gpu.measure import BATCH, DEVICE, ON_GPU, SIZE, Make, Once, Plan, compare, endless, peers
from petseg import build_loader
from petseg.classes import OXFORD
from petseg.data.decode.images import Chroma
from petseg.data.loaders.build import make_crew
from petseg.data.loaders.cache import DeviceStore
from petseg.data.loaders.codec import CodecEngine
from petseg.data.loaders.cpu import CpuEngine
from petseg.data.loaders.crew import ThreadCrew, Threads
from petseg.data.loaders.dali import DaliEngine
from petseg.data.loaders.loader import Loader, LoaderPlan
from petseg.data.shards.reader import ShardReader
from petseg.system import usable_cores

GATHERED = 4096


@functools.cache
def reference(cell: Cell, chroma: Chroma) -> Reference:
    """What the contenders of a section are judged by, made once for all of them."""
    return Reference.of(cell, SIZE, chroma)


def ours(
    cell: Cell,
    kind: str,
    threads: int,
    *,
    hw: float = 0.65,
    chroma: Chroma = "fancy",
    ahead: int = 2,
    pipelines: int = 1,
) -> Make:
    """A loader of petseg's, judged by the contract under its own decode policy.

    Args:
        cell: the samples.
        kind: `dali`, `processes` or `nvimgcodec`.
        threads: that decode.
        hw: share of the images for the JPEG engines.
        chroma: how JPEGs are decoded.
        ahead: batches that are made ahead.
        pipelines: loaders that take turns, each with its share of the samples.
    """

    def engine() -> Any:
        reader = ShardReader(cell.shards, cell.manifest, "train", chroma=chroma)
        if kind == "dali":
            beside = Threads(threads // 2 or 1)
            crew = make_crew(threads // 2 or 1) if ON_GPU else ThreadCrew(beside)
            return DaliEngine(
                reader, crew, beside, manifest=cell.manifest, batch_size=BATCH, device=DEVICE, num_threads=threads,
                hw_decoder_load=hw,
            )  # fmt: skip
        crew = make_crew(threads)
        return CpuEngine(reader, crew, DEVICE) if kind == "processes" else CodecEngine(reader, crew, DEVICE, threads)

    def make() -> tuple[Once, dict[str, Any]]:
        sizes = tuple(cell.manifest.split("train").sizes)
        made = [
            Loader(
                LoaderPlan(
                    digest=cell.manifest.digest, split="train", sizes=sizes, batch_size=BATCH, seed=0, training=True,
                    rank=rank, world=pipelines,
                ),
                OXFORD, (SIZE, SIZE), DEVICE, engine(), ahead,
            )
            for rank in range(pipelines)
        ]  # fmt: skip
        turns = itertools.chain.from_iterable(zip(*map(endless, made), strict=True))
        first = [next(turns) for _ in range(len(made[0]) * pipelines)]
        wrong = reference(cell, chroma).judge(
            *(np.concatenate([np.asarray(getattr(b, part).cpu()) for b in first]) for part in ("images", "codes"))
        )
        return lambda: len(next(turns).indices), {"hw_decoder_load": hw, "chroma": chroma, "detail": wrong}

    return make


def theirs(cell: Cell, stream_of: str, threads: int, **options: Any) -> Make:
    """A loader of `peers/_device_loading.py`."""

    def make() -> tuple[Once, dict[str, Any]]:
        stream = getattr(peers("_device_loading"), stream_of)(cell.folder, threads, SIZE, BATCH, DEVICE, **options)
        return lambda: len(next(stream)[0]), dict(options)

    return make


def loaders(plan: Plan, side: int) -> None:
    """Every way to batches on the device, 128 px out."""
    cell = plan.cell(side)
    cores = usable_cores()
    half = max(1, cores // 2)
    many = sorted({half, max(1, cores - 2)})
    contenders = [
        *((f"petseg dali, {n} threads", "petseg", ours(cell, "dali", n)) for n in sorted({max(1, cores // 4), *many})),
        (f"petseg dali, {half} threads, no JPEG engine", "petseg", ours(cell, "dali", half, hw=0.0)),
        *((f"petseg processes, {n}", "petseg", ours(cell, "processes", n)) for n in many),
        (f"petseg nvImageCodec, {half} threads", "petseg", ours(cell, "nvimgcodec", half)),
        *((f"DALI's own reader, {n} threads", "library", theirs(cell, "dali_native", n, fancy=True)) for n in many),
        (f"torchvision's CUDA decoder, {half} threads", "library", theirs(cell, "torchvision_cuda", half)),
    ]
    compare(plan, f"Loading, {cell.label}, {SIZE} px out, batch {BATCH}", contenders)


def caches(plan: Plan) -> None:
    """Samples that were decoded before: the gather alone, and through a loader."""
    samples, batch = (4 * GATHERED, GATHERED) if ON_GPU else (256, 64)
    store = DeviceStore(samples, (SIZE, SIZE), DEVICE)
    rng = np.random.default_rng(0)
    draws = [rng.permutation(samples)[:batch] for _ in range(8)]

    def gather() -> tuple[Once, dict[str, Any]]:
        turns = itertools.cycle(draws)
        return lambda: len(store.get(next(turns)).images), {"bytes_a_sample": 2 * 4 * SIZE * SIZE}

    def through(kind: Any, size: int) -> Make:
        def make() -> tuple[Once, dict[str, Any]]:
            loader = build_loader(
                "webdataset", shards=plan.cell(128).shards, split="train", batch_size=size, size=(SIZE, SIZE),
                device=DEVICE, training=True, cache=kind,
            )  # fmt: skip
            for _ in loader:
                pass
            batches = endless(loader)
            return lambda: len(next(batches).indices), {}

        return make

    compare(
        plan,
        f"Caches, {SIZE} px out",
        [
            (f"device cache, bare gather of {batch}", "petseg", gather),
            ("petseg cache device, batch 32", "petseg", through("device", 32)),
            (f"petseg cache device, batch {BATCH}", "petseg", through("device", BATCH)),
            (f"petseg cache host, batch {BATCH}", "petseg", through("host", BATCH)),
        ],
    )
