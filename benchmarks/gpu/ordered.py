"""DALI's own webdataset reader in petseg's order: the yardstick of the DALI loader.

It takes samples in the order of its index's lines, so an index is written for each epoch, in which a tar is listed once
for each run of samples from it. It maps all tars, and starts anew in every epoch, which petseg's loader does not.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from petseg.data.decode.images import Chroma
from petseg.data.shards.index import VERSION, index_name
from petseg.data.shards.manifest import Manifest


def write_order(shards: Path, split: str, order: np.ndarray, out: Path) -> tuple[list[str], list[str]]:
    """Write the index files of an epoch.

    Args:
        shards: shard folder.
        split: name of a split.
        order: i64[n], samples of the split.
        out: empty folder.

    Returns:
        (paths of tars, those of their index files), one of each for each run of samples from one tar.
    """
    chosen = Manifest.load(shards).split(split).shards
    starts = np.concatenate([[0], np.cumsum([shard.samples for shard in chosen])])
    lines = [(shards / index_name(shard.name)).read_text().splitlines()[1:] for shard in chosen]
    of_shard = np.searchsorted(starts, order, "right") - 1
    tars: list[str] = []
    indices: list[str] = []
    for shard, run in itertools.groupby(range(len(order)), lambda place: int(of_shard[place])):
        taken = [lines[shard][order[place] - starts[shard]] for place in run]
        index = out / f"{len(indices):07}.idx"
        index.write_text("\n".join([f"{VERSION} {len(taken)}", *taken]) + "\n")
        tars.append(str(shards / chosen[shard].name))
        indices.append(str(index))
    return tars, indices


def empty_pipeline(*, threads: int, batch: int, device: torch.device, ahead: int) -> Any:
    """A pipeline of DALI's dynamic executor that nothing is in yet; it works `ahead` batches ahead by itself."""
    from nvidia.dali import Pipeline

    return Pipeline(
        batch_size=batch,
        num_threads=threads,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        prefetch_queue_depth=ahead,
        exec_dynamic=True,
    )


def epoch_of(
    tars: list[str],
    indices: list[str],
    *,
    threads: int,
    size: int,
    batch: int,
    device: torch.device,
    chroma: Chroma = "simple",
    encoded: bool = False,
) -> Any:
    """A pipeline for one epoch, built: (images u8[H, W, 3], masks u8[H, W, 1]) of a size; or the encoded bytes.

    The nearest resize of the masks is bit-equal to `resize_nearest`: DALI rounds positions down in float32, and a
    quarter of a result's pixel moves them off the ties without moving any to another pixel.
    """
    from nvidia.dali import fn as typed
    from nvidia.dali import types

    fn: Any = typed  # its stubs take every input for optional

    on_gpu = device.type == "cuda"
    pipe = empty_pipeline(threads=threads, batch=batch, device=device, ahead=2)
    with pipe:
        jpegs, pngs = fn.readers.webdataset(
            paths=tars, index_paths=indices, ext=["jpg", "png"], random_shuffle=False,
            missing_component_behavior="error",
        )  # fmt: skip
        images = fn.decoders.image(
            jpegs,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=chroma == "fancy",
        )
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
        masks = fn.decoders.image(pngs, device="cpu", output_type=types.GRAY)
        quarter = 1 / (4 * size)
        sides = fn.slice(masks.shape(dtype=types.FLOAT), start=[0], shape=[2], axes=[0])
        masks = fn.resize(
            masks,
            size=[size, size],
            interp_type=types.INTERP_NN,
            roi_start=[quarter, quarter],
            roi_end=sides + quarter,
        )
        pipe.set_outputs(*((jpegs, pngs) if encoded else (images, masks.gpu() if on_gpu else masks)))
    pipe.build()
    return pipe


def batches(
    shards: Path,
    orders: Iterable[np.ndarray],
    *,
    threads: int,
    size: int,
    batch: int,
    device: torch.device,
    chroma: Chroma = "simple",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Full batches of the train split, epoch after epoch: images u8[N, H, W, 3], codes u8[N, H, W]; on the device."""
    for order in orders:
        with tempfile.TemporaryDirectory() as folder:
            tars, indices = write_order(shards, "train", order, Path(folder))
            pipe = epoch_of(tars, indices, threads=threads, size=size, batch=batch, device=device, chroma=chroma)
            for _ in range(len(order) // batch):
                images, masks = (_tensor(each, device) for each in pipe.run())
                yield images, masks[..., 0]


def _tensor(outputs: Any, device: torch.device) -> torch.Tensor:
    dense = outputs.as_tensor()
    return from_dlpack(dense) if device.type == "cuda" else torch.from_numpy(np.array(dense))
