"""Train and use networks from Python: what the commands do, without their terminal output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from petseg.config import TrainConfig
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place, RemoteShards, place_of, shards_for
from petseg.device import open_world, resolve_device
from petseg.errors import OptionError, PetsegError
from petseg.inference.evaluate import score
from petseg.inference.predict import Prediction, Probabilities
from petseg.inference.predict import predict as write_predictions
from petseg.inference.remote_runs import local_run
from petseg.inference.segment import Segmenter
from petseg.inference.trained import TrainedModel, load_trained
from petseg.inference.whole_images import at_own_size, score_whole_images
from petseg.model.augment import OwnAugment
from petseg.model.losses import OwnLoss
from petseg.report.panels import report_run
from petseg.run.folder import RunFolder, folder_for
from petseg.training.augmentation import Own
from petseg.training.conclude import FitResult
from petseg.training.fit import fit
from petseg.training.reporter import Callback, Log, Reporter, Reporters
from petseg.training.resume import Resume, settle
from petseg.training.tensorboard import EventWriter
from petseg.training.terminal import ConsoleReporter, in_notebook


def train(
    config: TrainConfig | Mapping[str, Any],
    network: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    loss: OwnLoss | None = None,
    augment: OwnAugment | None = None,
    resume: Resume = False,
    reporter: Reporter | None = None,
    began: float | None = None,
) -> FitResult:
    """Train as `petseg-train` does: the same run folder, checkpoints, scores and report.

    Args:
        config: options by name, as in a run's config.toml; `shards` must be among them.
        network: one of your own in place of `arch`: from images f32[N, 3, H, W] to logits [N, C, H, W], or to a dict
            with them as `out`, as torchvision's segmentation networks give it. It is trained in place.
        callbacks: called in rank 0: each a `petseg.Reporter`, or a function that is called with the record of
            each epoch: the line of metrics.jsonl, with `epoch`, `train_loss`, `lr`, `val` (a dict of scores),
            `images_per_s` and more.
        loss: one of your own in place of `loss`: a function of logits f32[N, C, H, W] and class indices i64[N, H, W]
            (-100 where a pixel does not count) that gives a scalar. To be given again on `resume`.
        augment: one of your own in place of the options': a function of images f32[N, 3, H, W] in 0-1 and class indices
            i64[N, H, W] (255 where a pixel does not count), on the device, that gives both. To be given again on
            `resume`.
        resume: resume `run_dir` (or the newest run in `runs/`) from its last checkpoint; other options may be left
            out. `"auto"` resumes where `run_dir` holds a run that saved something, and else starts it there.
        reporter: shows the run's progress. Default: progress in a notebook; elsewhere the logger `petseg`
            (`logging.basicConfig(level="INFO")` shows it).
        began: when the run began, by `time.perf_counter`, for `max_minutes`; default: now.

    Returns:
        The run: its `summary` (the scores), `run.path` (its folder) and `trained` (its best network).

    Raises:
        PetsegError: bad input, or a loss that is no longer finite.

    Examples:
        >>> result = petseg.train({"shards": "shards/oxford", "epochs": 10}, callbacks=[wandb.log])  # doctest: +SKIP
        >>> result.summary["mean_iou"]  # doctest: +SKIP
        0.71
    """
    began = time.perf_counter() if began is None else began
    settled, run = settle(config, resume)
    if not settled.shards:
        raise OptionError("shards", "name a folder that petseg-shard wrote.")
    with open_world(settled.device) as world, _shown(reporter) as person:
        reporters = [person, *callbacks]
        if settled.tensorboard and world.is_main:
            reporters.append(EventWriter())
        where = run or RunFolder(Path(world.broadcast(folder_for(settled))))
        result = fit(
            settled,
            where,
            world,
            Reporters(reporters),
            resume=run is not None,
            own=Own(network, loss, augment),
            began=began,
        )
        if world.is_main and result.trained is not None:
            assert result.manifest and result.test and result.summary, "the run reached its end"
            shards, split = shards_for(result.trained.config), result.summary["split"]
            report_run(where.path, result.trained, shards, result.manifest, split, result.test.image_iou, world.device)
        return result


@contextmanager
def _shown(reporter: Reporter | None) -> Iterator[Reporter]:
    """The reporter of a run: as given, else by where it runs (a terminal, a notebook, a log)."""
    if reporter is None and in_notebook():
        with ConsoleReporter(Console(soft_wrap=True, highlight=False)) as bar:
            yield bar
    else:
        yield reporter or Log()


def evaluate(
    run: Path | str | TrainedModel,
    split: str = "test",
    *,
    shards: Path | str | RemoteShards | None = None,
    network: nn.Module | None = None,
    full_size: bool = False,
    tta: bool = False,
    tta_scales: Sequence[float] = (1.0,),
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Score a run on a split, with the run's own options unless given others.

    Args:
        run: run folder, a checkpoint in it, or what `load_trained` gave, on the device.
        split: name of a split.
        shards: shard folder; default: the run's own.
        network: one of the same kind, where the run trained a network of your own; it stays as it is.
        full_size: score at each image's own size in the shards, as a run does itself that learns from crops or from
            padded images.
        tta: average with the mirrored image, in twice the time.
        tta_scales: average over the image enlarged by these factors; others than 1 mean `full_size`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: called with the number of samples after each batch.
        changes: options of the run that are to be others: `size`, `loader`, `amp`, `channels_last`, `verify`,
            `on_bad_sample`.

    Returns:
        The scores by name: `mean_iou`, `iou` (by class), `dice`, `pixel_accuracy`, `foreground_iou`, all 0 to 1, and
        more, as in summary.json.

    Raises:
        PetsegError: no such run or split, or shards of other classes.

    Examples:
        >>> petseg.evaluate("runs/mine", "val", size="256")["mean_iou"]  # doctest: +SKIP
        0.71
    """
    where = resolve_device(device)
    trained = run if isinstance(run, TrainedModel) else load_trained(local_run(run), where, network=network, **changes)
    folder = shards_of(trained, shards)
    manifest = Manifest.load(folder)
    if at_own_size(trained, tta_scales, full_size=full_size):
        return score_whole_images(
            trained, folder, manifest, split, device=where, tta=tta, scales=tta_scales, progress=progress
        ).metrics
    trained = trained.mirrored() if tta else trained
    return score(trained, folder, manifest, split, device=where, progress=progress).metrics


def predict(
    run: Path | str | Segmenter,
    images: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    network: nn.Module | None = None,
    device: str = "auto",
    probabilities: Probabilities = "",
    allow_damaged: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Write masks (PNG, the class codes) and overlays of images, each at its own size.

    Args:
        run: run folder, a checkpoint in it, or what `petseg.load` gave.
        images: images, or folders of images.
        out: folder for the results, made if need be.
        network: one of the same kind, where the run trained a network of your own; it stays as it is.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        probabilities: `png` or `npy` to write each class's probabilities too.
        allow_damaged: take images of which a part is missing, too.
        progress: called with 1 after each image.

    Returns:
        What was written, one entry an image.

    Raises:
        PetsegError: no such run, or images that could not be read; what could be done was done.

    Examples:
        >>> [done] = petseg.predict("runs/mine", "photo.jpg", "predictions")  # doctest: +SKIP
        >>> done.mask, done.shares["pet"]  # doctest: +SKIP
        (PosixPath('predictions/photo.png'), 0.31)
    """
    segmenter = run if isinstance(run, Segmenter) else load(run, device, network)
    inputs = [images] if isinstance(images, Path | str) else images
    return write_predictions(
        segmenter,
        [Path(image) for image in inputs],
        Path(out),
        probabilities=probabilities,
        allow_damaged=allow_damaged,
        progress=progress,
    )


def write_report(
    run: Path | str,
    *,
    shards: Path | str | RemoteShards | None = None,
    network: nn.Module | None = None,
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Make a finished run's report.html again, from what its folder and its shards hold.

    Args:
        run: run folder.
        shards: shard folder; default: the run's own.
        network: one of the same kind, where the run trained a network of your own; it stays as it is.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: called with the number of samples after each batch that is scored.

    Returns:
        The path of the report.

    Raises:
        PetsegError: no finished run, or its shards are gone.

    Examples:
        >>> petseg.write_report("runs/mine", network=MyNetwork())  # doctest: +SKIP
        PosixPath('runs/mine/report.html')
    """
    folder = RunFolder(Path(run))
    split, where = folder.summary()["split"], resolve_device(device)
    trained = load_trained(folder.path, where, network=network)
    data = shards_of(trained, shards)
    manifest = Manifest.load(data)
    scored = score(trained, data, manifest, split, device=where, progress=progress)
    return report_run(folder.path, trained, data, manifest, split, scored.image_iou, where)


def shards_of(trained: TrainedModel, given: Path | str | RemoteShards | None) -> Place:
    """The shards to use: as given, else the run's own.

    Raises:
        PetsegError: the run's own are gone.
    """
    if given is not None:
        return place_of(given)
    own = shards_for(trained.config)
    if isinstance(own, Path) and not own.is_dir():
        raise PetsegError(f"{own}, where the run's shards were, is not a folder any more: give --shards.")
    return own


def load(
    run: Path | str,
    device: str = "auto",
    network: nn.Module | None = None,
    *,
    amp: str | None = None,
    tta: bool = False,
    tta_scales: Sequence[float] = (1.0,),
    tile: int = 0,
    overlap: float = 0.25,
) -> Segmenter:
    """The trained network of a run, ready for images of any size.

    Args:
        run: run folder (its best checkpoint), or a checkpoint in it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        network: one of the same kind, where the run trained a network of your own; it stays as it is.
        amp: mixed precision, `auto`, `bf16`, `fp16` or `off`; None for what the device has if the run had any.
        tta: average with the mirrored image (test-time augmentation), in twice the time.
        tta_scales: average over the image enlarged by these factors, in as many times the time.
        tile: short side in pixels of the tiles that an image is cut into, each squashed to the network's size; 0 for
            as in training: the whole image, or tiles of the network's size where it learned from crops.
        overlap: smallest share of a tile that its neighbour covers too, 0 to 0.9.

    Raises:
        PetsegError: no such run, it is damaged, or an option out of range.

    Examples:
        >>> pets = petseg.load("runs/mine")  # doctest: +SKIP
        >>> codes = pets.predict("photo.jpg")  # doctest: +SKIP
        >>> codes.shape, pets.classes.names  # doctest: +SKIP
        ((375, 500), ('pet', 'background', 'border'))
    """
    where = resolve_device(device)
    trained = load_trained(local_run(run), where, network=network)
    return Segmenter(trained, where, amp=amp, tta=tta, scales=tta_scales, tile=tile, overlap=overlap)
