"""What bounds the DALI loader on a GPU: decoding, feeding, reading, uploading; and what its settings do."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from benchmarks.data import Cell
from benchmarks.gpu.loading import ours, reference, theirs
from benchmarks.gpu.measure import BATCH, DEVICE, ON_GPU, SIZE, Make, Once, Plan, compare
from benchmarks.gpu.ordered import batches, empty_pipeline
from petseg.data.decode.boxes import Framing
from petseg.data.decode.images import Chroma
from petseg.data.loaders import dali
from petseg.data.loaders.build import make_crew
from petseg.data.loaders.encoded import read_encoded
from petseg.data.order import epoch_order
from petseg.data.shards.reader import ShardReader
from petseg.system import usable_cores

SIDE = 256
"""Short side of the packed images, in pixels."""

POLICIES: tuple[Chroma, ...] = ("fancy", "simple")


def _half() -> int:
    return max(1, usable_cores() // 2)


def _chart(cell: Cell, what: str) -> str:
    return f"{what}, {cell.label}, {SIZE} px out, batch {BATCH}"


def upsampling(plan: Plan) -> None:
    """The loaders and DALI's own reader under both decode policies."""
    cell, half = plan.cell(SIDE), _half()
    contenders: list[tuple[str, str, Make]] = []
    for chroma in POLICIES:
        peer = theirs(cell, "dali_native", half, fancy=chroma == "fancy")
        contenders += [
            (f"petseg dali, {chroma}", "petseg", ours(cell, "dali", half, chroma=chroma)),
            (f"petseg nvImageCodec, {chroma}", "petseg", ours(cell, "nvimgcodec", half, chroma=chroma)),
            (f"DALI's own reader, {chroma}", "library", peer),
        ]
    compare(plan, _chart(cell, "Decode policies"), contenders)


def feeding(plan: Plan) -> None:
    """DALI fed with the same batch again and again, by three ways; then with what children read; then with masks."""
    cell, half = plan.cell(SIDE), _half()
    contenders = [
        *((f"one batch, {how}", "petseg", _constant(cell, half, how)) for how in ("list", "list, no copy", "rows")),
        ("read by children", "petseg", _without_upload(ours(cell, "dali", half, chroma="simple"))),
        ("read by children, masks uploaded", "petseg", ours(cell, "dali", half, chroma="simple")),
        ("children alone", "petseg", _children(cell, half)),
    ]
    compare(plan, _chart(cell, "Where the DALI loader's time goes, simple upsampling"), contenders)


def ordered(plan: Plan) -> None:
    """DALI's own reader in petseg's order, judged by the contract."""
    cell, half = plan.cell(SIDE), _half()
    sizes = cell.manifest.split("train").sizes

    def make(chroma: Chroma) -> tuple[Once, dict[str, Any]]:
        orders = (epoch_order(sizes, 0, epoch) for epoch in itertools.count())
        stream = batches(cell.shards, orders, threads=half, size=SIZE, batch=BATCH, device=DEVICE, chroma=chroma)
        first = [next(stream) for _ in range(sum(sizes) // BATCH)]
        parts = (np.concatenate([np.asarray(pair[part].cpu()) for pair in first]) for part in (0, 1))
        return lambda: len(next(stream)[0]), {"detail": reference(cell, chroma).judge(*parts)}

    contenders: list[tuple[str, str, Make]] = [
        (f"DALI's own reader in our order, {chroma}", "library", functools.partial(make, chroma)) for chroma in POLICIES
    ]
    compare(plan, _chart(cell, "The yardstick"), contenders)


def tuning(plan: Plan) -> None:
    """Settings of the DALI loader, one at a time."""
    cell, half = plan.cell(SIDE), _half()
    dali_loader = functools.partial(ours, cell, "dali", chroma="simple")
    threads = sorted({max(1, round(share * half)) for share in (0.75, 1, 1.5)})
    contenders = [
        *((f"{n} threads", "petseg", dali_loader(n)) for n in threads),
        *((f"JPEG engine {load}", "petseg", dali_loader(half, hw=load)) for load in (0.5, 0.8)),
        ("4 batches ahead", "petseg", dali_loader(half, ahead=4)),
        ("two pipelines", "petseg", dali_loader(half, pipelines=2)),
        ("threads on any core", "petseg", _not_affine(dali_loader(half))),
    ]
    compare(plan, _chart(cell, "Settings of the DALI loader, simple upsampling"), contenders)


def _constant(cell: Cell, threads: int, how: str) -> Make:
    """A pipeline as the loader's, whose input is there already."""

    def make() -> tuple[Once, dict[str, Any]]:
        from nvidia.dali import fn as typed
        from nvidia.dali import types

        fn: Any = typed
        reader = ShardReader(cell.shards, cell.manifest, "train")
        crew = make_crew(2)
        encoded = read_encoded(reader, crew, np.arange(min(BATCH, len(reader))), Framing((SIZE, SIZE)))
        encoded.check()
        pipe = empty_pipeline(threads=threads, batch=BATCH, device=DEVICE, ahead=1)
        with pipe:
            images = fn.external_source(name="images", dtype=types.UINT8, ndim=1, no_copy=how != "list")
            if how == "rows":
                lengths = fn.external_source(name="lengths", dtype=types.INT32, ndim=1)
                images = fn.slice(images, start=[0], shape=lengths, axes=[0])
            images = fn.decoders.image(images, device="mixed" if ON_GPU else "cpu", output_type=types.RGB)
            pipe.set_outputs(fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=True))
        pipe.build()

        def feed() -> None:
            if how == "rows":
                pipe.feed_input("lengths", encoded.lengths[:, None])
            pipe.feed_input("images", encoded.rows() if how == "rows" else encoded.images())
            pipe.schedule_run()

        for _ in range(3):
            feed()

        def once() -> int:
            feed()
            stream = torch.cuda.current_stream() if ON_GPU else None
            (decoded,) = pipe.share_outputs(stream)
            if ON_GPU:
                from_dlpack(decoded.as_tensor())
            pipe.release_outputs()
            return len(decoded)

        return once, {}

    return make


def _children(cell: Cell, threads: int) -> Make:
    def make() -> tuple[Once, dict[str, Any]]:
        reader = ShardReader(cell.shards, cell.manifest, "train")
        crew, framing = make_crew(threads // 2 or 1), Framing((SIZE, SIZE))

        def stream() -> Iterator[int]:
            whole = min(BATCH, len(reader))
            under_way = [read_encoded(reader, crew, np.arange(whole), framing) for _ in range(3)]
            for first in itertools.count():
                under_way[0].check()
                under_way.pop(0)
                at = first * whole % max(1, len(reader) - whole)
                under_way.append(read_encoded(reader, crew, np.arange(at, at + whole), framing))
                yield whole

        made = stream()
        return lambda: next(made), {}

    return make


def _without_upload(make: Make) -> Make:
    """Masks are made and not sent; the judge, who looks at them, has them still."""

    def upload(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
        return torch.zeros((), dtype=torch.uint8, device=device).expand(pixels.shape)

    def made() -> tuple[Once, dict[str, Any]]:
        once, facts = make()

        def without() -> int:
            with mock.patch.object(dali, "upload", upload):
                return once()

        return without, facts

    return made


def _not_affine(make: Make) -> Make:
    """DALI's decoding threads are not bound to cores."""

    def made() -> tuple[Once, dict[str, Any]]:
        from nvidia.dali import fn

        decoders: Any = fn.decoders
        with mock.patch.object(decoders, "image", functools.partial(decoders.image, affine=False)):
            return make()

    return made
