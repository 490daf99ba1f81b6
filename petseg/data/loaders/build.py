"""A loader from its name and options."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from petseg.data.decode import nvimgcodec
from petseg.data.decode.boxes import SQUASH, Fit, Kind, as_fit
from petseg.data.decode.images import Chroma, policy_of
from petseg.data.loaders.cache import CachedEngine, check_room, make_store, whole_bytes
from petseg.data.loaders.codec import CodecEngine
from petseg.data.loaders.cpu import CpuEngine
from petseg.data.loaders.crew import Crew, Processes, ThreadCrew, Threads, processes_work
from petseg.data.loaders.dali import DaliEngine
from petseg.data.loaders.kept import slot_bytes
from petseg.data.loaders.loader import Engine, Loader, LoaderPlan, Size
from petseg.data.loaders.staged import StagedEngine
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place, RemoteShards, place_of
from petseg.data.shards.reader import OnBad, ShardReader
from petseg.data.shards.shardcache import refuse_small
from petseg.data.shards.stage import window_bytes
from petseg.device import (
    count_from_environment,
    from_every_rank,
    group_size,
    local_share,
    rank_and_world,
    resolve_device,
)
from petseg.errors import PetsegError
from petseg.system import usable_cores

LOADERS = ("auto", "dali", "webdataset")
"""Names that `build_loader` takes."""

MOST_DECODERS = 16
"""Default limit of decoding threads or processes: they feed any network, and each process takes some 60 MB."""

MOST_BESIDE_A_GPU = 8
"""DALI's threads where a GPU decodes: with 16 cores and an H200, 8 fed it as fast as 14 or faster."""


def decoders(asked: int, most: int = MOST_DECODERS) -> int:
    """Decoding threads or processes of this rank: those asked for, or for 0 its share of the machine's cores."""
    return asked or max(1, min(most, usable_cores() // local_share()[1]))


def resolve_loader(choice: str, device: torch.device) -> str:
    """`auto` means DALI where it decodes on a GPU, else the webdataset loader, which is the faster one on CPUs."""
    if choice != "auto":
        return choice
    return "dali" if device.type == "cuda" and dali_is_installed() else "webdataset"


def dali_is_installed() -> bool:
    """Whether DALI is installed, and not merely a folder that an uninstallation left behind."""
    try:
        spec = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:  # no package `nvidia` at all
        return False
    return spec is not None and spec.origin is not None and any(Path(spec.origin).parent.glob("backend_impl*"))


def decodes_with_nvimgcodec(device: torch.device) -> bool:
    """Whether the webdataset loader decodes on this device with nvImageCodec."""
    return device.type == "cuda" and nvimgcodec.available()


def make_engine(
    name: str,
    reader: ShardReader,
    *,
    manifest: Manifest,
    batch_size: int,
    device: torch.device,
    num_threads: int,
    kind: Kind = "squash",
    keep: bool = False,
) -> Engine:
    """The engine behind a loader.

    Args:
        name: `dali` or `webdataset`.
        reader: the samples; closed together with the engine, or if there will be none.
        manifest: of the same folder.
        batch_size: most samples in one submission.
        device: where batches go.
        num_threads: threads or processes that decode.
        kind: of the boxes that will be asked for.
        keep: whole images are kept in memory, for crops.

    Raises:
        PetsegError: DALI is not installed; processes cannot be started; this engine keeps none.
    """
    try:
        if keep and not keeps_images(name, device):
            raise PetsegError(
                "--cache: for crops, whole images are kept by --loader webdataset on a CPU only: leave it out."
            )
        # DALI's CPU decoder interpolates colour whatever its option says (2.4).
        if name == "dali" and (device.type == "cuda" or reader.chroma == "fancy"):
            # DALI's threads do most of the work; as many again beside them would take each other's cores.
            helpers = max(1, num_threads // 2)
            # On a CPU, where they resize too, threads are a third faster than processes. Where a GPU decodes, they
            # would wait for each other's GIL, and the GPU for them.
            threads = None if device.type == "cuda" else Threads(helpers)
            crew = make_crew(helpers) if threads is None else ThreadCrew(threads)
            return DaliEngine(
                reader,
                crew,
                threads,
                manifest=manifest,
                batch_size=batch_size,
                device=device,
                num_threads=num_threads,
                kind=kind,
            )
        if decodes_with_nvimgcodec(device):
            return CodecEngine(reader, make_crew(num_threads), device, num_threads)
        crew = make_crew(num_threads)
        try:
            slot = slot_bytes(manifest.max_height, manifest.max_width)
            return CpuEngine(reader, crew, device, crew.keep(len(reader), slot) if keep else None)
        except BaseException:
            crew.close()
            raise
    except BaseException:
        reader.close()
        raise


def keeps_images(name: str, device: torch.device) -> bool:
    """Whether a loader can keep whole images, for crops."""
    return name == "webdataset" and device.type == "cpu"


def make_crew(workers: int) -> Crew:
    """Processes, which do not wait for each other's GIL; threads where there are no such processes."""
    return Processes.shared(workers) if processes_work() else ThreadCrew(Threads(workers))


def open_reader(
    shards: Place,
    manifest: Manifest,
    split: str,
    *,
    world: int,
    verify: bool,
    on_bad: OnBad,
    chroma: Chroma = "fancy",
) -> tuple[ShardReader, tuple[int, ...]]:
    """A split's reader, and what is damaged in it: the same on all ranks, which share the hashing.

    Raises:
        PetsegError: see `ShardReader`, on every rank.
    """
    if world > 1 and on_bad == "skip":
        return _agreed(lambda: ShardReader(shards, manifest, split, verify=verify, on_bad="skip", chroma=chroma), world)
    # The ranks of a machine share the hashing, where it is torchrun that says which ranks those are.
    share = local_share() if 1 < world == count_from_environment("WORLD_SIZE", 1) else (0, 1)
    reader = ShardReader(shards, manifest, split, verify=verify, share=share, on_bad=on_bad, chroma=chroma)
    return reader, reader.bad


def _agreed(open_one: Callable[[], ShardReader], world: int) -> tuple[ShardReader, tuple[int, ...]]:
    """A reader, and the samples damaged on any rank: copies of the shards may differ by machine, the order must not.

    Raises:
        PetsegError: of any rank, on every rank; there is no process group to agree through; too much is damaged.
    """
    if group_size() != world:
        raise PetsegError(
            "--on-bad-sample skip: the ranks have to agree on what is damaged: open a process group of all of them "
            "(torch.distributed.init_process_group) before build_loader, or leave skip out."
        )
    reader, failure = None, ""
    try:
        reader = open_one()
    except PetsegError as error:
        failure = str(error)
    found = from_every_rank((reader.bad if reader else (), failure))
    if reader is None or any(text for _, text in found):
        raise PetsegError(next(text for _, text in found if text))
    bad = tuple(sorted({index for each, _ in found for index in each}))
    reader.refuse_too_many(bad)
    return reader, bad


def _checked(weights: np.ndarray | None, samples: int, *, training: bool) -> np.ndarray | None:
    if weights is None:
        return None
    if not training:
        raise PetsegError("--sample-weights: evaluation visits every sample once; weights are for training.")
    weights = np.asarray(weights, np.float64)
    if weights.shape != (samples,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise PetsegError(f"--sample-weights: give {samples} numbers, 0 or more and not all 0, one a sample.")
    return weights


def nodes_for(lanes: int, world: int) -> int:
    """Number of machines that share the lanes: all that torchrun started, if they can share them evenly."""
    nodes, rest = divmod(world, local_share()[1])
    return nodes if nodes > 1 and not rest and lanes > 1 and lanes % nodes == 0 else 1


def build_loader(
    name: str,
    *,
    shards: Path | str | RemoteShards,
    manifest: Manifest | None = None,
    split: str,
    batch_size: int,
    size: Size | Callable[[int], Size],
    device: torch.device | str | None = None,
    seed: int = 0,
    training: bool = False,
    rank: int | None = None,
    world: int | None = None,
    window: int | None = None,
    lanes: int = 1,
    num_threads: int = 0,
    prefetch_batches: int = 2,
    fit: Fit | Kind = SQUASH,
    weights: np.ndarray | None = None,
    cache: Literal["none", "host", "device"] = "none",
    verify: bool = True,
    on_bad_sample: OnBad = "stop",
    chroma: Chroma = "fancy",
) -> Loader:
    """A loader over one split of a shard folder.

    Args:
        name: `auto` (DALI on a GPU, webdataset on a CPU), `dali` or `webdataset`.
        shards: folder that `petseg-shard` wrote, or the address of one in a store (`RemoteShards` with options).
        manifest: its manifest, where that has been read already.
        split: `train`, `val` or `test`.
        batch_size: samples of one rank's batch.
        size: (height, width) of the batches in pixels, or a function that gives it for an epoch.
        device: where the batches go, and where images are decoded if it is a GPU: a device, `auto` (the GPU if there
            is one), `cpu`, `cuda` or `cuda:N`; None for the CPU.
        seed: seed of the order.
        training: True shuffles each epoch and drops the tail that fills no global batch; False visits every sample
            exactly once in the order of the manifest, padded by rows of index -1.
        rank: this rank, from 0; without it and `world`, those of the process group, or else of torchrun's environment.
            `rank=0, world=1` means every sample, also there.
        world: number of ranks.
        window: how many shards are in play at once when shuffling (of each lane); None for all.
        lanes: parts that the shards are dealt to for training, a multiple of the machines: each then needs its own
            alone, and not all (`epoch_order`).
        num_threads: decoding threads (processes, which all loaders share, for `webdataset`); 0 for one a usable core,
            divided among the ranks of a machine, and 16 at most (8 where DALI decodes on a GPU).
        prefetch_batches: batches that are made ahead.
        fit: how images become inputs of that size: `squash`, `pad`, `crop` (for training), or a `Fit` with options.
        weights: f64[samples], 0 or more: an epoch of as many visits goes to samples in proportion to these, and not
            once to each. For training.
        cache: keep decoded samples in `host` memory (one copy a machine) or on the `device`; for crops whole images,
            by the webdataset loader of one rank on a CPU.
        verify: check the shards' hashes first; what was found sound is remembered, so only a first run pays for it.
        on_bad_sample: what a shard that fails its hash leads to. `stop`: an error. `skip`: its samples are decoded at
            once, and the damaged ones are replaced in training (each by the next sound one) and left out in
            evaluation; `Loader.skipped` names them. Several ranks agree on them through their process group, so each
            of them must build the loader.
        chroma: how JPEGs' colour is enlarged: `fancy` (interpolated) or `simple` (repeated; faster on a GPU).

    Raises:
        PetsegError: no such loader, device, folder or split; DALI is not installed; shards that are not what the
            manifest says; too few samples for one batch; a cache that does not fit.

    Examples:
        >>> loader = build_loader(  # doctest: +SKIP
        ...     "auto", shards="shards/oxford", split="train", batch_size=64, size=(128, 128), training=True
        ... )
        >>> for batch in loader:  # doctest: +SKIP
        ...     learn_from(batch.images, batch.masks)
    """
    if name not in LOADERS:
        raise PetsegError(f"--loader: unknown loader '{name}'; choose {', '.join(LOADERS)}.")
    if not isinstance(device, torch.device) or (device.type == "cuda" and not torch.cuda.is_available()):
        device = resolve_device(str(device or "cpu"))
    name = resolve_loader(name, device)
    rank, world = rank_and_world(rank, world)
    if batch_size < 1:
        raise PetsegError(f"--batch-size: {batch_size} is out of range; give at least 1.")
    shards = place_of(shards)
    manifest = manifest or Manifest.load(shards)
    chosen = manifest.split(split)
    needed = batch_size * world if training else 1
    if chosen.samples < needed:
        raise PetsegError(
            f"{shards}: the {split} split has {chosen.samples} samples, too few for a batch of {batch_size} on each of "
            f"{world} ranks; give a smaller --batch-size."
        )
    fit = as_fit(fit)
    if fit.kind == "crop" and not training:
        raise PetsegError("--fit crop: crops are for training; to score, take `squash` or `pad`, or petseg.evaluate.")
    on_gpu = device.type == "cuda"
    threads = decoders(num_threads, MOST_BESIDE_A_GPU if name == "dali" and on_gpu else MOST_DECODERS)
    plan = LoaderPlan(
        digest=manifest.digest,
        split=split,
        sizes=tuple(chosen.sizes),
        batch_size=batch_size,
        seed=seed,
        training=training,
        rank=rank,
        world=world,
        window=window,
        lanes=lanes if training else 1,
        nodes=nodes_for(lanes, world) if training else 1,
        weights=_checked(weights, chosen.samples, training=training),
    )
    if isinstance(shards, RemoteShards):
        at_once = window * (lanes // nodes_for(lanes, world)) if window and training else window
        refuse_small(shards.limit, window_bytes(chosen, at_once if training else 1), "two windows of shards")
    store, keep = None, fit.kind == "crop" and cache != "none"
    if keep:
        if world > 1:
            raise PetsegError("--cache: for crops, every rank would keep all of the images: leave it out.")
        check_room(cache, whole_bytes(manifest, chosen.samples), device)
    elif cache != "none":
        if callable(size):
            raise PetsegError("--cache: samples are kept at one size, not at one that changes: leave it out.")
        store = make_store(cache, chosen.samples, size, device, world)
    reader, bad = open_reader(shards, manifest, split, world=world, verify=verify, on_bad=on_bad_sample, chroma=chroma)
    plan = dataclasses.replace(plan, bad=bad)
    engine = make_engine(
        name,
        reader,
        manifest=manifest,
        batch_size=batch_size,
        device=device,
        num_threads=threads,
        kind=fit.kind,
        keep=keep,
    )
    if reader.stage is not None:
        engine = StagedEngine(engine, reader, plan)
    if store is not None:
        engine = CachedEngine(store, engine)
    skipped = tuple(map(reader.where, bad))
    return Loader(
        plan, manifest.classes, size, device, engine, prefetch_batches, skipped, fit, decode=policy_of(chroma)
    )
