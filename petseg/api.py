"""Training and using networks from Python: what the commands do, without what a person sees of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from petseg.config import TrainConfig, resolve
from petseg.distributed import open_world, resolve_device
from petseg.errors import PetsegError
from petseg.inference.segment import Segmenter
from petseg.inference.trained import load_trained
from petseg.report.panels import report_run
from petseg.training.run_folder import RunFolder, folder_for
from petseg.training.trainer import Callback, FitResult, fit

logger = logging.getLogger("petseg")


class _Log:
    """A `Reporter` that logs: one line an epoch, and every note."""

    def note(self, text: str) -> None:
        logger.info(text)

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        pass

    def step(self, images_per_s: float, data_wait_pct: float, memory_mb: float) -> None:
        pass

    def epoch_ended(self, record: dict[str, Any]) -> None:
        score = record["val"]["mean_iou"] if record["val"] else None
        logger.info("epoch %d: loss %.3f, val mean IoU %s", record["epoch"], record["train_loss"], score)


def train(
    config: TrainConfig | Mapping[str, Any],
    network: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool | Literal["auto"] = False,
) -> FitResult:
    """Train as `petseg-train` does: the same run folder, checkpoints, scores and report.

    What the command would say goes to the logger `petseg` (`logging.basicConfig(level="INFO")` shows it).

    Args:
        config: options by name, as in a run's config.toml; `shards` must be among them.
        network: one of your own in place of `arch`: from images f32[N, 3, H, W] to logits [N, C, H, W], or to a dict
            with them as `out`, as torchvision's segmentation networks give it. It is trained in place.
        callbacks: called in rank 0 with the record of each epoch: the line of metrics.jsonl, with `epoch`,
            `train_loss`, `lr`, `val` (a dict of scores), `images_per_s` and more.
        resume: go on with `run_dir` from its last checkpoint; other options may be left out. `"auto"` goes on where
            `run_dir` holds a run that saved something, and else starts it there.

    Returns:
        The run: its `summary` (the scores), `run.path` (its folder) and `trained` (its best network).

    Raises:
        PetsegError: bad input, or a loss that is no longer finite.

    Example:
        >>> result = petseg.train({"shards": "shards/oxford", "epochs": 10}, callbacks=[wandb.log])  # doctest: +SKIP
        >>> result.summary["mean_iou"]  # doctest: +SKIP
        0.71
    """
    options = config.to_dict() if isinstance(config, TrainConfig) else dict(config)
    if resume == "auto":
        if not options.get("run_dir"):
            raise PetsegError("run_dir: resume='auto' needs the folder that it is to look into.")
        resume = RunFolder(Path(options["run_dir"])).can_go_on
    if resume:
        run = RunFolder(Path(options.pop("run_dir", "")))
        if not run.can_go_on:
            raise PetsegError(f"run_dir: {run.path} holds no run to go on with.")
        resolved = resolve({**options, "shards": options.get("shards") or None}, run.config)
    else:
        resolved = resolve(options)
        if not resolved.shards:
            raise PetsegError("shards: name a folder that petseg-shard wrote.")
    with open_world(resolved.device) as world:
        if not resume:
            run = RunFolder(Path(world.broadcast(folder_for(resolved))))
        result = fit(resolved, run, world, _Log(), resume=resume, network=network, callbacks=callbacks)
        if world.is_main and result.trained is not None:
            report_result(result, world.device)
        return result


def report_result(result: FitResult, device: torch.device) -> Path:
    """Write the report of a run that has just reached its end, from what it still has in memory; its path."""
    assert result.trained and result.manifest and result.test and result.summary, "the run did not reach its end"
    shards, split = Path(result.trained.config.shards), result.summary["split"]
    return report_run(result.run.path, result.trained, shards, result.manifest, split, result.test.image_iou, device)


def load(
    run: Path | str,
    device: str = "auto",
    network: nn.Module | None = None,
    *,
    amp: str | None = None,
    tta: bool = False,
    tile: int = 0,
    overlap: float = 0.25,
) -> Segmenter:
    """The trained network of a run, ready for pictures of any size.

    Args:
        run: run folder (its best checkpoint), or a checkpoint in it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        network: a fresh one of the same kind, where the run trained a network of your own.
        amp: mixed precision, `auto`, `bf16`, `fp16` or `off`; None for what the device has if the run had any.
        tta: average with the mirrored picture (test-time augmentation), in twice the time.
        tile: short side in pixels of the tiles that a picture is cut into, each squashed to the network's size; 0
            squashes the whole picture, as in training.
        overlap: smallest share of a tile that its neighbour covers too, 0 to 0.9.

    Raises:
        PetsegError: no such run, it is damaged, or an option out of range.

    Example:
        >>> pets = petseg.load("runs/mine")  # doctest: +SKIP
        >>> codes = pets.predict("photo.jpg")  # doctest: +SKIP
        >>> codes.shape, pets.classes.names  # doctest: +SKIP
        ((375, 500), ('pet', 'background', 'border'))
    """
    where = resolve_device(device)
    trained = load_trained(Path(run).expanduser(), where, network=network)
    return Segmenter(trained, where, amp=amp, tta=tta, tile=tile, overlap=overlap)
