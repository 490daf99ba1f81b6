"""A training run from its configuration to its summary."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.data.loaders.build import build_loader
from petseg.data.loaders.cache import cache_bytes, check_room
from petseg.data.loaders.loader import Loader
from petseg.data.shards.hashes import unknown_shards
from petseg.data.shards.manifest import Manifest
from petseg.distributed import World
from petseg.errors import PetsegError
from petseg.inference.evaluate import Evaluation, evaluate
from petseg.inference.trained import TrainedModel, load_trained, load_weights, network_for, transform_for
from petseg.model.networks import Network, OwnNetwork, check_size, count_parameters
from petseg.model.pretrained import absolute_source, load_encoder
from petseg.model.smp import SmpNetwork
from petseg.signals import Stop, stop_signals
from petseg.system import bytes_in_words, versions
from petseg.training import auto
from petseg.training.budget import MARGIN, measure_pace
from petseg.training.checkpoint import load_training_state, save_run, settle_best
from petseg.training.progress import Progress
from petseg.training.resume import check_changes, finished_summary
from petseg.training.run_folder import RESOLVED, RunFolder
from petseg.training.step import TrainStep
from petseg.training.telemetry import peak_memory_mb, verdict

CHECK_EVERY = 50
"""Steps between two looks at whether the loss is finite; each look waits for the device."""

MEMORY_EVERY_S = 0.5
"""Seconds between two looks at the memory in use; each takes 56 µs on a GPU."""

AGREE_EVERY = 10
"""Steps between two agreements of several ranks on whether to stop."""


SAVE_SHARE, QUICK_SAVE_SECONDS = 0.05, 0.1
"""Checkpoints at the ends of epochs take this share of the time at most, and are left out only where one takes so long.
A GPU can be through an epoch in less time than its 190 MB take to reach a disk."""

NAMED_SAMPLES = 5
"""Damaged samples that are named; `petseg verify` names all."""


ANNOUNCED_CACHE = 500_000_000
"""Bytes of memory that are mentioned, where nobody asked for a cache."""

ANNOUNCED_BYTES = 2_000_000_000
"""Hashing more shards than this takes seconds, so it is said."""


class Reporter(Protocol):
    """Who tells the person what is going on. Only the main rank's is called."""

    def note(self, text: str) -> None:
        """Say one sentence."""
        ...

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Epoch `epoch` of `epochs` (from 1) begins, with `steps` steps left in it."""
        ...

    def step(self, images_per_s: float, data_wait_pct: float, memory_mb: float) -> None:
        """A step was taken."""
        ...

    def epoch_ended(self, record: dict[str, Any]) -> None:
        """An epoch's line of metrics.jsonl."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """What a run came to.

    Example:
        >>> result = petseg.train({"shards": "shards/oxford"})  # doctest: +SKIP
        >>> result.run.path, result.summary["mean_iou"], result.summary["images_per_s"]  # doctest: +SKIP
        (PosixPath('runs/20260102-030405-default-unet'), 0.71, 3120.5)
    """

    run: RunFolder
    summary: dict[str, Any] | None
    """The content of summary.json, None where the run was stopped before its end."""
    test: Evaluation | None
    """None too where there was nothing left to do."""
    trained: TrainedModel | None = None
    """The best checkpoint's network, as it was scored."""
    manifest: Manifest | None = None
    """The manifest of the run's shards."""
    exit_code: int = 0
    """0, or 128 plus the signal that stopped the run."""


Callback = Callable[[dict[str, Any]], object]
"""Hears of each epoch, in rank 0, with its line of metrics.jsonl."""


def fit(
    config: TrainConfig,
    run: RunFolder,
    world: World,
    reporter: Reporter,
    *,
    resume: bool = False,
    network: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train, validate each epoch, keep the best and the last checkpoint, and score the best one on `test`.

    Args:
        config: options, `auto` ones still open (on resume: as the run's config.toml has them).
        run: an empty new folder; on resume the run's own.
        world: the ranks.
        reporter: told of everything.
        resume: go on from the run's last checkpoint.
        network: somebody's own, in place of `config.arch`.
        callbacks: called with each epoch's record.

    Raises:
        PetsegError: bad input, or a loss that is no longer finite.
    """
    auto.tune_process(world.device)
    if network is not None and not resume:
        config = dataclasses.replace(config, arch="own")
    asked = config
    if world.device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(world.device)
    checkpoint = load_training_state(run) if resume else None
    if checkpoint is not None:
        config = check_changes(config, checkpoint, run)
        if summary := finished_summary(config, checkpoint, run):
            if world.is_main:
                reporter.note(
                    f"{run.path} is finished ({summary['epochs']} epochs), so there is nothing to do; --epochs with a "
                    "larger number goes on."
                )
            return FitResult(run=run, summary=summary, test=None)
    job = _Job(config, asked, run, world, reporter, checkpoint, network, callbacks)
    try:
        with stop_signals() as stop:
            finished = job.train(stop)
        if not finished:
            return FitResult(run=run, summary=None, test=None, exit_code=stop.exit_code)
        return job.conclude()
    finally:
        job.close()


class _Job:
    """The parts of one run, put together."""

    def __init__(
        self,
        config: TrainConfig,
        asked: TrainConfig,
        run: RunFolder,
        world: World,
        reporter: Reporter,
        checkpoint: dict[str, Any] | None,
        own: nn.Module | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.began = time.perf_counter()
        self.run, self.world, self.reporter, self.callbacks = run, world, reporter, callbacks
        shards, init_from = Path(config.shards), config.init_from
        self.manifest = Manifest.load(shards)
        self.classes: ClassTable = self.manifest.classes
        config = self._fitting(config, self.manifest.split("train").samples)
        per_epoch = self._samples("train") // (config.batch_size * world.size) * config.batch_size * world.size
        torch.manual_seed(config.seed)
        network = network_for(config, self.classes, own)
        if isinstance(network, OwnNetwork):
            network.check_outputs(len(self.classes), *config.height_width)
        check_size(network, *config.height_width, config.batch_size)
        if isinstance(network, SmpNetwork):
            network.freeze_unused(*config.height_width)
            self._note_padding(config, network.stride)
        cached = cache_bytes(self._samples("train") + self._samples("val"), config.height_width)
        samples = per_epoch // world.size * config.epochs
        chosen = auto.resolve(config, world.device, network, samples, cached, world.size)
        # Absolute, so that the run is understood from any folder.
        shards_path, init_path = str(shards.absolute()), str(Path(init_from).absolute()) if init_from else ""
        encoder_weights = absolute_source(config.encoder_weights)
        self.config = config = dataclasses.replace(
            config,
            loader=cast(Any, chosen.loader),
            amp=chosen.amp,
            compile="on" if chosen.compile else "off",
            cache=chosen.cache,
            optimizer=chosen.optimizer,
            # Without an index: that is each rank's own, and another one's on another machine.
            device=world.device.type,
            shards=shards_path,
            init_from=init_path,
            encoder_weights=encoder_weights,
            run_dir=str(run.path.absolute()),
        )
        for note in chosen.notes:
            self.note(note)
        # What the first weights expect of their input goes on to be what the network expects.
        self.mean, self.std = list(self.manifest.mean), list(self.manifest.std)
        if checkpoint:
            load_weights(network, checkpoint["model"], run.last)
            self.mean, self.std = checkpoint["mean"], checkpoint["std"]
        elif init_from:
            source = load_trained(Path(init_from), torch.device("cpu"))
            load_weights(network, source.network.state_dict(), source.path)
            self.mean, self.std = source.transform.mean.tolist(), source.transform.std.tolist()
        elif encoder_weights:
            assert isinstance(network, SmpNetwork), "only these have an encoder, so TrainConfig refuses all others"
            pretrained = load_encoder(network, encoder_weights)
            self.mean, self.std = list(pretrained.mean), list(pretrained.std)
            self.note(pretrained.sentence)
        if config.sync_batchnorm and world.size > 1:
            if world.device.type != "cuda":
                raise PetsegError("--sync-batchnorm: torch has it for GPUs only; leave it out on CPUs.")
            network = cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm(network)
        self.network: Network = network.to(world.device)
        self.transform = transform_for(config, self.mean, self.std).to(world.device)
        self.step = TrainStep(
            self.network,
            config,
            self.classes,
            self.transform,
            world,
            amp=config.amp,
            compile=chosen.compile,
            total_samples=per_epoch * config.epochs,
            note=self.note,
        )
        # Before a loader's threads have the device do anything beside it.
        self.step.capture()
        self.progress = Progress()
        self.saved_at, self.save_seconds = time.perf_counter(), 0.0
        self.unsaved_epoch: int | None = None
        self.unsaved_best: dict[str, Any] | None = None
        self.skipped: dict[str, int] = {}
        self.clock = self.progress.clock
        if config.cache != "none" and (asked.cache != "auto" or cached > ANNOUNCED_CACHE):
            splits = [name for name in ("train", "val") if self._samples(name)]
            self.note(
                f"--cache {config.cache} takes {bytes_in_words(cached)} for {' and '.join(splits)} at {config.size} "
                "px, filled during the first epoch."
            )
        if config.cache != "none":
            check_room(config.cache, cached, world.device)
        self._announce_hashing()
        self.loader = self._loader("train", training=True)
        self.val = self._loader("val") if self._samples("val") else None
        if self.val is None:
            self.note("These shards have no val split: the last epoch's weights count as the best.")
        if checkpoint:
            self._restore(checkpoint)
        elif config.max_minutes:
            self._fit_epochs(per_epoch)
        if world.is_main:
            if checkpoint:
                settle_best(run.path)
            else:
                run.create()
            # As a file for --config: whoever gives it wants the same run in a folder of its own.
            again = dataclasses.replace(
                asked, shards=shards_path, init_from=init_path, encoder_weights=encoder_weights, run_dir=""
            )
            run.write(run.config.name, again.to_toml().encode())
            run.write(RESOLVED, self.config.to_toml().encode())
        world.barrier()

    def note(self, text: str) -> None:
        if self.world.is_main:
            self.reporter.note(text)

    def _fitting(self, config: TrainConfig, samples: int) -> TrainConfig:
        """A batch that the train split fills on every rank, where the one that was asked for is larger."""
        most = samples // self.world.size
        if config.batch_size <= most:
            return config
        if not most:
            raise PetsegError(f"the train split has {samples} samples, too few for {self.world.size} ranks.")
        self.note(f"--batch-size {config.batch_size} becomes {most}: the train split has {samples} samples.")
        return dataclasses.replace(config, batch_size=most)

    def _fit_epochs(self, per_epoch: int) -> None:
        """Settle how many epochs --max-minutes allows, by a few steps that are undone."""
        minutes, together = self.config.max_minutes, self.config.batch_size * self.world.size
        val, test = (-(-self._samples(split) // together) for split in ("val", "test"))
        cached = self.config.cache != "none"
        pace = measure_pace(self.step, self.loader, cached=cached, seconds=60 * minutes)
        once = time.perf_counter() - self.began + pace.once(steps=per_epoch // together, scored=test)
        each = pace.epoch(steps=per_epoch // together, scored=val)
        usable = 60 * minutes * (1 - MARGIN)
        epochs = int(self.world.broadcast(str(int((usable - once) // each))))
        if epochs < 1:
            self.close()
            raise PetsegError(
                f"--max-minutes {minutes:g}: one epoch with its scores takes {minutes * (once + each) / usable:.2g} "
                "minutes here; give that or more, or a smaller --size or --width."
            )
        self.config = dataclasses.replace(self.config, epochs=epochs)
        self.step.total_samples = per_epoch * epochs
        self.note(
            f"--max-minutes {minutes:g}: {epochs} epochs of {per_epoch // together} steps, each of which takes "
            f"{1000 * pace.step:,.0f} ms here."
        )

    def _announce_hashing(self) -> None:
        every = [shard for split in self.manifest.splits.values() for shard in split.shards]
        size = (
            sum(shard.bytes for shard in unknown_shards(Path(self.config.shards), every)) if self.config.verify else 0
        )
        if size > ANNOUNCED_BYTES:
            self.note(f"Checking the hashes of {bytes_in_words(size)} of shards, this once (--no-verify goes without).")

    def _note_padding(self, config: TrainConfig, stride: int) -> None:
        """Unlike our own networks, these halve so often that padding can be a good part of the work."""
        height, width = config.height_width
        below, above = (
            [max(stride * round_(side / stride), stride) for side in (height, width)]
            for round_ in (math.floor, math.ceil)
        )
        if below != above:
            less, more = (f"{h}" if height == width else f"{h}x{w}" for h, w in (below, above))
            self.note(f"--size {config.size} is padded to {more} for this network: {less} or {more} waste nothing.")

    def close(self) -> None:
        self.loader.close()
        if self.val is not None:
            self.val.close()

    def _samples(self, split: str) -> int:
        return self.manifest.splits[split].samples if split in self.manifest.splits else 0

    def _loader(self, split: str, *, training: bool = False) -> Loader:
        config, world = self.config, self.world
        loader = build_loader(
            config.loader,
            shards=Path(config.shards),
            manifest=self.manifest,
            split=split,
            batch_size=config.batch_size,
            size=config.height_width,
            device=world.device,
            seed=config.seed,
            training=training,
            rank=world.rank,
            world=world.size,
            window=config.window or None,
            num_threads=config.num_threads,
            prefetch_batches=config.prefetch_batches,
            cache=cast(Any, config.cache if training or split == "val" else "none"),
            verify=config.verify,
            on_bad_sample=config.on_bad_sample,
        )
        if loader.skipped:
            self.skipped[split] = len(loader.skipped)
            named = ", ".join(loader.skipped[:NAMED_SAMPLES]) + (" ..." if len(loader.skipped) > NAMED_SAMPLES else "")
            count, done = len(loader.skipped), "replaced" if training else "left out"
            what = "damaged sample of {} is" if count == 1 else "damaged samples of {} are"
            self.note(f"--on-bad-sample skip: {count} {what.format(split)} {done}: {named}.")
        return loader

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        if self.step.ema and checkpoint["ema"] is not None:
            self.step.ema.network.load_state_dict(checkpoint["ema"])
        self.step.load_state_dict(checkpoint["step"])
        self.loader.load_state_dict(checkpoint["loader"])
        self.progress.load_state_dict(checkpoint["progress"])

    def train(self, stop: Stop) -> bool:
        """Whether the run reached its end (and was not stopped by a signal)."""
        while (epoch := self.loader.state_dict()["epoch"]) < self.config.epochs and not self._out_of_patience():
            if not self._train_epoch(epoch, stop):
                return False
        if self.unsaved_epoch is not None:
            with self.clock.measure("other"):
                self._save(self.unsaved_epoch)
        return True

    def _train_epoch(self, epoch: int, stop: Stop) -> bool:
        world, step, clock, progress = self.world, self.step, self.clock, self.progress
        epoch_on_device = torch.tensor(epoch, device=world.device)
        began = time.perf_counter()
        before, samples = progress.part or (dict(clock.seconds), 0)
        earlier, part_samples = sum(clock.seconds.values()) - sum(before.values()), samples
        if world.is_main:
            self.reporter.epoch_started(epoch + 1, self.config.epochs, len(self.loader))
        batches = iter(self.loader)
        memory, read_at = 0.0, -math.inf
        while True:
            with clock.measure("data"):
                batch = next(batches, None)
            if batch is None:
                break
            with clock.measure("compute"):
                step(batch, epoch_on_device)
                if step.steps % CHECK_EVERY == 0:
                    self._check_loss(epoch)
            samples += len(batch.indices) * world.size
            if world.is_main:
                now = time.perf_counter()
                if now - read_at > MEMORY_EVERY_S:
                    memory, read_at = peak_memory_mb(world.device), now
                self.reporter.step((samples - part_samples) / (now - began), clock.data_wait_pct(), memory)
            if self.loader.state_dict()["epoch"] != epoch:
                continue  # that was the last batch: the epoch is finished properly, whatever signal has come
            agreed = world.size == 1 or step.steps % AGREE_EVERY == 0
            stopped = agreed and world.any(stop.number is not None)
            if stopped or self._save_is_due(agreed):
                with clock.measure("other"):
                    self._check_loss(epoch)
                    progress.part = (before, samples)
                    self._save(epoch)
                if stopped:
                    return False
        progress.part = None
        with clock.measure("compute"):
            loss = self._check_loss(epoch)
        data, compute = (clock.seconds[k] - before[k] for k in ("data", "compute"))
        with clock.measure("evaluation"):
            val = self._validate(epoch)
        record = {
            "epoch": epoch + 1,
            "train_loss": loss,
            "lr": step.rate,
            "val": val,
            "samples": samples,
            "skipped_steps": step.skipped_steps,
            "images_per_s": samples / (data + compute) if samples else 0.0,
            "data_wait_pct": 100 * data / (data + compute) if samples else 0.0,
            "memory_mb": peak_memory_mb(world.device),
            "seconds": earlier + time.perf_counter() - began,
        }
        progress.records.append(record)
        step.start_epoch()
        # A signal that came during evaluation: the epoch is whole, so stop before the next one.
        stopped = epoch + 1 < self.config.epochs and world.any(stop.number is not None)
        with clock.measure("other"):
            self._epoch_is_whole(epoch, stopped=stopped)
        if world.is_main:
            self.reporter.epoch_ended(record)
            for callback in self.callbacks:
                callback(dict(record))
        return not stopped

    def _epoch_is_whole(self, epoch: int, *, stopped: bool) -> None:
        """Save an epoch, unless epochs are so short that checkpoints would take a good part of the run."""
        if self.progress.best == epoch + 1:
            self.unsaved_best = {**self._described(), "epoch": epoch + 1}
        apart = self.save_seconds / SAVE_SHARE if self.save_seconds > QUICK_SAVE_SECONDS else 0.0
        early = time.perf_counter() - self.saved_at < apart  # on rank 0, which writes
        if stopped or not self.world.any(early):
            self._save(epoch)
            return
        self.unsaved_epoch = epoch
        if self.unsaved_best is not None and self.unsaved_best["epoch"] == epoch + 1:
            self.unsaved_best = _kept(self.unsaved_best)

    def _save_is_due(self, agreed: bool) -> bool:
        """Whether this step is to be saved; the same on every rank. `agreed`: all ranks ask at this step."""
        steps, minutes = self.config.save_every_steps, self.config.save_every_minutes
        if steps and self.step.steps % steps == 0:
            return True
        late = time.perf_counter() - self.saved_at >= 60 * minutes
        return bool(minutes) and agreed and self.world.any(late)

    def _validate(self, epoch: int) -> dict[str, Any] | None:
        self.step.share_buffers()
        if self.val is None:
            self.progress.judge(epoch + 1, 0.0, ())
            return None
        self.val.set_epoch(0)
        found = self._evaluate(self.val, self.step.evaluated_network)
        if not self.progress.records:
            self._note_absent(found.metrics, "val")
        if found.metrics["mean_iou"] is not None:
            self.progress.judge(epoch + 1, found.metrics["mean_iou"], found.image_iou.values())
        return found.metrics

    def _evaluate(self, loader: Loader, network: Network) -> Evaluation:
        return evaluate(
            network, loader, self.classes, self.transform, self.world, amp=self.config.amp, dice=self.config.dice
        )

    def _note_absent(self, metrics: dict[str, Any], split: str) -> None:
        if absent := metrics["absent"]:
            self.note(f"{', '.join(absent)}: no pixel of the {split} split is of it, so {split} says nothing about it.")

    def _check_loss(self, epoch: int) -> float:
        loss = self.step.mean_loss()
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss is no longer finite ({loss})", epoch)
        return loss

    def _check_weights(self, epoch: int) -> None:
        """A step can spoil the weights whose own loss was still finite: they must not be saved as good ones."""
        if self.world.any(not self.step.weights_are_finite()):
            raise self._not_finite("the weights are no longer finite", epoch)

    def _not_finite(self, what: str, epoch: int) -> PetsegError:
        last = self.run.last if self.run.last.exists() else "none yet"
        return PetsegError(
            f"{what} in epoch {epoch + 1} before step {self.step.steps}, at learning rate {self.step.rate:.2g}; last "
            f"good checkpoint: {last}. Try a lower --lr."
        )

    def _out_of_patience(self) -> bool:
        if not self.progress.is_out_of_patience(self.config.patience):
            return False
        waited = self.progress.waited()
        self.note(f"No better mean IoU for {waited} epochs (--patience {self.config.patience}): stopped.")
        return True

    def _save(self, epoch: int) -> None:
        """Every rank takes part; rank 0 writes."""
        began = time.perf_counter()
        self._check_weights(epoch)
        sections = {
            "step": self.step.state_dict(),
            "loader": self.loader.state_dict(),
            "progress": self.progress.state_dict(),
        }
        if self.world.is_main:
            self.run.write_records(self.progress.records)
            save_run(self.run.path, self._described(), sections, self.unsaved_best)
        self.unsaved_epoch = self.unsaved_best = None
        self.saved_at = time.perf_counter()
        self.save_seconds = self.saved_at - began

    def _described(self) -> dict[str, Any]:
        """What every checkpoint holds."""
        ema = self.step.ema
        return {
            "config": self.config.to_dict(),
            "classes": self.classes.to_dict(),
            "mean": self.mean,
            "std": self.std,
            "decode_policy": "fancy-upsampling",
            "tones": self.manifest.encoding.tones.to_dict(),
            "data_digest": self.manifest.digest,
            "model": self.network.state_dict(),
            "ema": ema.network.state_dict() if ema else None,
        }

    def conclude(self) -> FitResult:
        """Score the best checkpoint on `test` (or `val`) and write the summary."""
        config, world, progress = self.config, self.world, self.progress
        world.barrier()
        split = next((name for name in ("test", "val", "train") if self._samples(name)), "train")
        if split != "test":
            self.note(f"These shards have no test split: the scores are of {split}, which the run has seen.")
        own = copy.deepcopy(self.network.module) if isinstance(self.network, OwnNetwork) else None
        # What the data is held to is this session's affair, whenever the checkpoint was written.
        today = {name: getattr(config, name) for name in ("verify", "on_bad_sample")}
        trained = load_trained(self.run.path, world.device, network=own, **today)
        loader = self._loader(split)
        try:
            with self.clock.measure("evaluation"):
                test = self._evaluate(loader, trained.network)
        finally:
            loader.close()
        self._note_absent(test.metrics, split)
        skipped = self.step.skipped_steps
        if skipped:
            self.note(f"fp16: {skipped} of {self.step.steps} steps were left out, their gradients were not finite.")
        samples = sum(r["samples"] for r in progress.records)
        spent = self.clock.seconds
        wait = self.clock.data_wait_pct()
        sentence, advice = verdict(wait, loader=config.loader, cache=config.cache, device=world.device, amp=config.amp)
        summary = {
            "split": split,
            "codes": list(self.manifest.classes.codes),
            **test.metrics,
            "images_per_s": samples / max(spent["data"] + spent["compute"], 1e-9),
            "data_wait_pct": wait,
            "epochs": len(progress.records),
            "best_epoch": progress.best,
            "skipped_steps": skipped,
            "damaged_samples": self.skipped,
            "seconds": progress.seconds,
            "loader": config.loader,
            "device": device_name(world.device),
            "amp": config.amp,
            "compile": "on" if self.step.compiled else "off",
            "ranks": world.size,
            "peak_memory_mb": peak_memory_mb(world.device),
            "verdict": sentence,
            "advice": advice,
            "time": dict(spent),
            "parameters": count_parameters(self.network),
            "versions": versions(),
            "data_digest": self.manifest.digest,
        }
        if world.is_main:
            self.run.write_summary(summary)
        return FitResult(run=self.run, summary=summary, test=test, trained=trained, manifest=self.manifest)


def _kept(described: dict[str, Any]) -> dict[str, Any]:
    """The same with copies of its weights, which training goes on changing."""
    copies = {
        name: {key: value.clone() for key, value in described[name].items()}
        for name in ("model", "ema")
        if described[name] is not None
    }
    return {**described, **copies}


def device_name(device: torch.device) -> str:
    """`cuda:0 (NVIDIA H100 ...)`, or `cpu` with the number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
