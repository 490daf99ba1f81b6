"""Builds the parts of a run from its configuration, ready for the first step."""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.data.decode.images import policy_of
from petseg.data.loaders.build import build_loader, keeps_images
from petseg.data.loaders.cache import cache_bytes, check_room, whole_bytes
from petseg.data.loaders.loader import Loader
from petseg.data.shards.columns import ShardColumns
from petseg.data.shards.hashes import unknown_shards
from petseg.data.shards.manifest import COLUMNS_FROM, Manifest
from petseg.data.shards.place import absolute, shards_for
from petseg.data.weights import sample_weights
from petseg.device import World
from petseg.errors import OptionError, PetsegError, flag_of
from petseg.inference.segment import Segmenter
from petseg.inference.trained import TrainedModel
from petseg.inference.whole_images import WholeImages
from petseg.model.build import load_weights, network_for, objective_for, transform_for
from petseg.model.networks import Network, OwnNetwork, check_size
from petseg.model.pretrained import IMAGENET, absolute_source, load_encoder, statistics_of
from petseg.model.smp import SmpNetwork
from petseg.model.transfer import take_over
from petseg.model.transform import InputTransform
from petseg.run.checkpoint import Saved, read_saved, settle_best
from petseg.run.folder import CONFIG, RESOLVED, RunFolder
from petseg.system import bytes_in_words
from petseg.threads import ComputeThreads
from petseg.training import auto
from petseg.training.augmentation import NOTHING, Own, own_augment
from petseg.training.balance import class_weights
from petseg.training.geometry import fit_of, settle_fit
from petseg.training.ordering import settle_order
from petseg.training.progress import Progress
from petseg.training.recipe import Course
from petseg.training.reporter import Reporter
from petseg.training.step import TrainStep

NAMED_SAMPLES = 5
"""Damaged samples that are named; `petseg verify` names all."""

ANNOUNCED_CACHE = 500_000_000
"""Bytes of an `auto` cache from which on it is mentioned."""

ANNOUNCED_BYTES = 2_000_000_000
"""Hashing more shards than this takes seconds, so it is said."""

UNKNOWN = 2**62
"""Samples of a run whose end is not known yet: until then it stands at the beginning of its schedule."""

Statistics = tuple[list[float], list[float]]
"""Channel means and deviations, in 0-1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The parts of a run."""

    run: RunFolder
    world: World
    reporter: Reporter
    """Silent on every rank but the first."""
    config: TrainConfig
    """Every `auto` is settled, every path absolute."""
    manifest: Manifest
    network: Network
    """On the device, not wrapped."""
    statistics: Statistics
    """The normalisation that the network expects."""
    transform: InputTransform
    step: TrainStep
    train: Loader
    val: Loader | WholeImages | None
    """Whole images where training sees parts of them or pads them; None where the shards have no such split."""
    progress: Progress
    threads: ComputeThreads
    skipped: dict[str, int] = field(default_factory=dict)
    """Damaged samples that are left out, by split."""

    @property
    def classes(self) -> ClassTable:
        """Of the shards."""
        return self.manifest.classes

    def source(self, split: str) -> Loader | WholeImages:
        """A loader that reads a split once, for scores."""
        return _scored(self.config, self.world, self.manifest, split, self.reporter, self.skipped)

    def segmenter(self, network: Network) -> Segmenter:
        """How the run's network, or an average of it, is used on an image of any size."""
        trained = TrainedModel(
            network=network,
            transform=self.transform,
            classes=self.classes,
            config=self.config,
            path=self.run.path,
            decode_policy=policy_of(self.config.chroma),
            tones=self.manifest.encoding.tones,
        )
        return Segmenter(trained, self.world.device, amp=self.config.amp)

    def close(self) -> None:
        """End the loaders' workers."""
        self.train.close()
        if self.val is not None:
            self.val.close()


def prepare(
    asked: TrainConfig,
    config: TrainConfig,
    run: RunFolder,
    world: World,
    reporter: Reporter,
    *,
    threads: ComputeThreads,
    checkpoint: dict[str, Any] | None = None,
    own: Own = NOTHING,
    began: float | None = None,
) -> Setup:
    """Put a run together and make its folder; nothing is learned yet.

    Args:
        asked: what was asked for, to be written down as it is.
        config: the same, on resume with what the run began with; `auto` ones still open.
        run: an empty new folder; with a checkpoint the run's own.
        world: the ranks.
        reporter: gets the notes.
        threads: that the network computes on.
        checkpoint: of the resumed run.
        own: custom network, loss and augmentation, in place of the options'.
        began: when the run began, by `time.perf_counter`; default: now.

    Raises:
        PetsegError: the parts do not fit each other, or something cannot be read; no folder was made.
    """
    manifest = Manifest.load(shards_for(config, reporter.note))
    if checkpoint is None:  # a resumed run had these notes when it began
        idle = config.idle()
        if config.chroma == "simple" and manifest.encoding.raw:
            idle.append(("chroma", "these shards hold PPM images, not JPEGs"))
        for name, why in idle:
            reporter.note(f"{flag_of(name)} {getattr(config, name)} does nothing here: {why}.")
    if config.loss == "own" and own.loss is None:
        raise OptionError("loss", "`own` is a loss from Python: petseg.train(..., loss=...).")
    if checkpoint and checkpoint["step"].get("own_augment", False) != (own.augment is not None):
        had, now = ("an augmentation of your own", "none") if own.augment is None else ("none of your own", "one")
        raise PetsegError(
            f"{run.path} was begun with {had}, and is to be resumed with {now}: petseg.train(..., augment=...)."
        )
    weights = class_weights(config.class_weights, manifest)
    config = _fitting(config, manifest.split("train").samples, world, reporter)
    _refuse_ignored(manifest)
    config, note = settle_fit(config, manifest)
    if note:
        reporter.note(note)
    # What is scored as whole images is not kept.
    splits = ["train"] if config.scores_whole_images else ["train", "val"]
    samples = sum(map(manifest.samples, splits))
    cached = whole_bytes(manifest, samples) if config.fit == "crop" else cache_bytes(samples, config.height_width)
    config = auto.settle_data(config, world, cached)
    config = _absolute(settle_order(config, world, manifest, reporter), run, world)
    _check_cache(asked, config, splits, cached, world, reporter)
    _announce_hashing(config, manifest, reporter)
    with ExitStack() as undo:
        loaders: _Loaders | None = None
        if world.device.type == "cpu":
            # Their processes start while the network is built.
            loaders = _Loaders.opened(config, world, manifest, reporter, checkpoint, undo)
        first = read_saved(Path(config.init_from)) if config.init_from and not checkpoint else None
        if first and config.head_width < 0 and len(first.classes) == len(manifest.classes):
            config = dataclasses.replace(config, head_width=first.config.head_width)
        torch.manual_seed(config.seed)
        network = _network(config, manifest, own.network, reporter)
        batch = config.batch_size * world.size
        per_epoch = manifest.samples("train") // batch * batch
        config, notes = auto.settle_step(config, world, network, per_epoch * config.epochs // world.size)
        for note in notes:
            reporter.note(note)
        statistics = _first_weights(network, config, manifest, checkpoint, first, run, reporter)
        network = _placed(network, config, world, reporter)
        transform = transform_for(config, *statistics).to(world.device)
        step = TrainStep(
            network,
            config,
            manifest.classes,
            transform,
            world,
            # A limit in minutes says later where the end is.
            total_samples=UNKNOWN if config.max_minutes else per_epoch * config.epochs,
            objective=objective_for(config, weights, own.loss),
            augmentation=own_augment(own.augment) if own.augment else None,
            note=reporter.note,
        )
        # Before a loader's threads have the device do anything beside it.
        step.capture()
        if loaders is None:
            loaders = _Loaders.opened(config, world, manifest, reporter, checkpoint, undo)
        if loaders.val is None:
            reporter.note("These shards have no val split: the last epoch's weights count as the best.")
        setup = Setup(
            run=run, world=world, reporter=reporter, config=config, manifest=manifest, network=network,
            statistics=statistics, transform=transform, step=step, train=loaders.train, val=loaders.val,
            progress=Progress(began=time.perf_counter() if began is None else began), threads=threads,
            skipped=loaders.skipped,
        )  # fmt: skip
        if world.device.type == "cpu" and world.size == 1:
            threads.follow()
        if checkpoint:
            _restore(setup, checkpoint)
        _make_folder(setup, asked, resumed=checkpoint is not None)
        undo.pop_all()
    return setup


@dataclass(frozen=True, slots=True)
class _Loaders:
    train: Loader
    val: Loader | WholeImages | None
    skipped: dict[str, int]

    @classmethod
    def opened(
        cls,
        config: TrainConfig,
        world: World,
        manifest: Manifest,
        reporter: Reporter,
        checkpoint: dict[str, Any] | None,
        undo: ExitStack,
    ) -> _Loaders:
        """Open both, if the run is resumed, and begin with the first batches; `undo` closes them."""
        skipped: dict[str, int] = {}
        train = _open(config, world, manifest, "train", reporter, skipped, training=True)
        undo.callback(train.close)
        val = _scored(config, world, manifest, "val", reporter, skipped) if manifest.samples("val") else None
        if val is not None:
            undo.callback(val.close)
        if checkpoint:
            train.load_state_dict(checkpoint["loader"])
        train.start()
        return cls(train, val, skipped)


def _refuse_ignored(manifest: Manifest) -> None:
    counted = sum(manifest.pixel_counts.get(code, 0) for code in manifest.classes.codes)
    if manifest.pixel_counts and not counted:
        raise PetsegError(
            "nothing to learn: every pixel of these shards' masks is ignored "
            f"(codes {', '.join(map(str, manifest.classes.ignored))}); pack with a class map that names the classes."
        )


def _placed(network: Network, config: TrainConfig, world: World, reporter: Reporter) -> Network:
    """The network on its device, as it is trained."""
    if config.freeze == "encoder":
        assert not isinstance(network, OwnNetwork), "TrainConfig refuses that"
        network.freeze_encoder()
    if config.sync_batchnorm and world.size > 1:
        if world.device.type != "cuda":
            raise OptionError("sync_batchnorm", "torch has it for GPUs only; leave it out on CPUs.")
        network = cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm(network)
    elif config.sync_batchnorm:
        reporter.note("--sync-batchnorm does nothing here: this run has one rank.")
    return network.to(world.device)


def _fitting(config: TrainConfig, samples: int, world: World, reporter: Reporter) -> TrainConfig:
    """A batch that the train split fills on every rank, where the one that was asked for is larger."""
    most = samples // world.size
    if config.batch_size <= most:
        return config
    if not most:
        raise PetsegError(f"the train split has {samples} samples, too few for {world.size} ranks.")
    reporter.note(f"--batch-size {config.batch_size} becomes {most}: the train split has {samples} samples.")
    return dataclasses.replace(config, batch_size=most)


def _network(config: TrainConfig, manifest: Manifest, own: nn.Module | None, reporter: Reporter) -> Network:
    """The network on the CPU, tried on the size of its input."""
    network = network_for(config, manifest.classes, own)
    if isinstance(network, OwnNetwork):
        network.check(len(manifest.classes), *config.height_width, config.batch_size)
    check_size(network, *config.height_width, config.batch_size)
    if isinstance(network, SmpNetwork):
        network.freeze_unused(*config.height_width)
        _note_padding(config, network.stride, reporter)
    return network


def _note_padding(config: TrainConfig, stride: int, reporter: Reporter) -> None:
    """Unlike our own networks, these halve so often that padding can be a good part of the work."""
    height, width = config.height_width
    below, above = (
        [max(stride * round_(side / stride), stride) for side in (height, width)] for round_ in (math.floor, math.ceil)
    )
    if below != above:
        less, more = (f"{h}" if height == width else f"{h}x{w}" for h, w in (below, above))
        reporter.note(f"--size {config.size} is padded to {more} for this network: {less} or {more} waste nothing.")


def _absolute(config: TrainConfig, run: RunFolder, world: World) -> TrainConfig:
    """With paths that are understood from any folder."""
    return dataclasses.replace(
        config,
        # Without an index: that is each rank's own, and another one's on another machine.
        device=world.device.type,
        shards=absolute(config.shards),
        init_from=str(Path(config.init_from).absolute()) if config.init_from else "",
        encoder_weights=absolute_source(config.encoder_weights),
        class_weights=_absolute_file(config.class_weights),
        sample_weights=_absolute_file(config.sample_weights),
        run_dir=str(run.path.absolute()),
    )


def _absolute_file(choice: str) -> str:
    return choice if choice in {"none", "balanced"} else str(Path(choice).absolute())


def _first_weights(
    network: Network,
    config: TrainConfig,
    manifest: Manifest,
    checkpoint: dict[str, Any] | None,
    first: Saved | None,
    run: RunFolder,
    reporter: Reporter,
) -> Statistics:
    """Give the network the weights that it begins with; the channel statistics that these expect of their input."""
    if checkpoint:
        load_weights(network, checkpoint["model"], run.last)
        return checkpoint["mean"], checkpoint["std"]
    theirs: Statistics | None
    if first:
        note = take_over(
            network,
            first.weights,
            first.path,
            source=first.classes,
            target=manifest.classes,
            head=config.init_head,
        )
        if note:
            reporter.note(note)
        theirs = first.mean, first.std
    elif config.encoder_weights:
        assert isinstance(network, SmpNetwork), "only these have an encoder, so TrainConfig refuses all others"
        pretrained = load_encoder(network, config.encoder_weights)
        reporter.note(pretrained.sentence)
        theirs = list(pretrained.mean), list(pretrained.std)
    elif isinstance(network, OwnNetwork):
        theirs = statistics_of(network.module)
        if theirs is None and config.statistics == "auto" and config.normalise:
            reporter.note("Images are normalised by the shards' statistics; --statistics imagenet is for its weights.")
    else:
        theirs = None
    if config.statistics == "imagenet":
        return list(IMAGENET[0]), list(IMAGENET[1])
    shards = list(manifest.mean), list(manifest.std)
    return theirs if theirs and config.statistics == "auto" else shards


def _check_cache(
    asked: TrainConfig, config: TrainConfig, splits: list[str], cached: int, world: World, reporter: Reporter
) -> None:
    crops = config.fit == "crop"
    if config.cache == "none":
        if crops and asked.cache == "auto":
            why = (
                "more than a sixteenth of the free memory; --cache host keeps them"
                if keeps_images(config.loader, world.device) and world.size == 1
                else "and are kept by --loader webdataset on a CPU with one rank only"
            )
            reporter.note(f"--cache none: whole images, of which crops are cut, take {bytes_in_words(cached)}, {why}.")
        return
    if asked.cache != "auto" or cached > ANNOUNCED_CACHE:
        what = "whole images of train" if crops else f"{' and '.join(splits)} at {config.size} px"
        reporter.note(
            f"--cache {config.cache} takes {bytes_in_words(cached)} for {what}, filled during the first epoch."
        )
    check_room(config.cache, cached, world.device)


def _announce_hashing(config: TrainConfig, manifest: Manifest, reporter: Reporter) -> None:
    folder = shards_for(config)
    if not config.verify or not isinstance(folder, Path):
        return
    every = [
        shard
        for split in manifest.splits.values()
        # Of more, each is checked when it is first used.
        if not isinstance(split.shards, ShardColumns) and len(split.shards) <= COLUMNS_FROM
        for shard in split.shards
    ]
    size = sum(shard.bytes for shard in unknown_shards(folder, every))
    if size > ANNOUNCED_BYTES:
        reporter.note(f"Checking the hashes of {bytes_in_words(size)} of shards, once (--no-verify skips it).")


def _scored(
    config: TrainConfig,
    world: World,
    manifest: Manifest,
    split: str,
    reporter: Reporter,
    skipped: dict[str, int],
) -> Loader | WholeImages:
    if not config.scores_whole_images:
        return _open(config, world, manifest, split, reporter, skipped)
    images = WholeImages.of(config, shards_for(config, reporter.note), manifest, split, world)
    _note_skipped(images.skipped, split, reporter, skipped, training=False)
    return images


def _open(
    config: TrainConfig,
    world: World,
    manifest: Manifest,
    split: str,
    reporter: Reporter,
    skipped: dict[str, int],
    *,
    training: bool = False,
) -> Loader:
    folder = shards_for(config, reporter.note)
    loader = build_loader(
        config.loader,
        shards=folder,
        manifest=manifest,
        split=split,
        batch_size=config.batch_size,
        size=config.height_width,
        device=world.device,
        seed=config.seed,
        training=training,
        rank=world.rank,
        world=world.size,
        window=config.window or None,
        lanes=config.lanes,
        num_threads=config.num_threads,
        prefetch_batches=config.prefetch_batches,
        fit=fit_of(config),
        weights=sample_weights(config.sample_weights, shards_for(config, reporter.note), manifest)
        if training
        else None,
        cache=cast(Any, config.cache if training or split == "val" else "none"),
        verify=config.verify,
        on_bad_sample=config.on_bad_sample,
        chroma=config.chroma,
    )
    _note_skipped(loader.skipped, split, reporter, skipped, training=training)
    return loader


def _note_skipped(
    names: tuple[str, ...], split: str, reporter: Reporter, skipped: dict[str, int], *, training: bool
) -> None:
    # A split is opened more than once: under a time limit it is timed before the end.
    if (count := len(names)) and split not in skipped:
        skipped[split] = count
        named = ", ".join(names[:NAMED_SAMPLES]) + (" ..." if count > NAMED_SAMPLES else "")
        what = "damaged sample of {} is" if count == 1 else "damaged samples of {} are"
        done = "replaced" if training else "left out"
        reporter.note(f"--on-bad-sample skip: {count} {what.format(split)} {done}: {named}.")


def _restore(setup: Setup, checkpoint: dict[str, Any]) -> None:
    step = setup.step
    if step.ema and checkpoint["ema"] is not None:
        step.ema.network.load_state_dict(checkpoint["ema"])
    step.load_state_dict(checkpoint["step"])
    setup.progress.load_state_dict(checkpoint["progress"])
    if saved := checkpoint["step"].get("course"):
        step.course = _course(
            setup.config,
            TrainConfig.recorded(checkpoint["config"]),
            Course(*saved),
            step,
        )


def _course(config: TrainConfig, before: TrainConfig, saved: Course, step: TrainStep) -> Course:
    """The schedule of a resumed run: from its present position to its present end."""
    reached, end = saved.share(step.samples), step.course.end
    if config.max_minutes and reached >= 1:  # the run was at its end, and its limit is a longer one now
        return Course(end=end, since=step.samples, share_then=min(before.max_minutes / config.max_minutes, 1.0))
    if config.max_minutes or (before.max_minutes and reached < 1):
        return Course(end=end, since=step.samples, share_then=reached)
    if before.max_minutes:
        return Course(end=end)
    return Course(end=end, since=saved.since, share_then=saved.share_then)


def scored_split(manifest: Manifest) -> str:
    """The split that a run is scored on at its end."""
    return next((name for name in ("test", "val", "train") if manifest.samples(name)), "train")


def _make_folder(setup: Setup, asked: TrainConfig, *, resumed: bool) -> None:
    config, run, world = setup.config, setup.run, setup.world
    if world.is_main:
        if resumed:
            settle_best(run.path)
        else:
            run.create()
        # As a file for --config: whoever gives it wants the same run in a folder of its own.
        again = dataclasses.replace(
            asked, shards=config.shards, init_from=config.init_from, encoder_weights=config.encoder_weights, run_dir=""
        )
        run.write(CONFIG, again.to_toml().encode())
        run.write(RESOLVED, config.to_toml().encode())
    world.barrier()
