"""The end of a run: score its best checkpoint, and write the summary."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from petseg.data.shards.manifest import Manifest
from petseg.inference.evaluate import Evaluation
from petseg.inference.trained import TrainedModel, load_trained
from petseg.model.networks import OwnNetwork, count_parameters
from petseg.run.folder import RunFolder
from petseg.system import versions
from petseg.training.prepare import Setup, scored_split
from petseg.training.scoring import note_absent, scores
from petseg.training.telemetry import peak_memory_mb
from petseg.training.verdict import verdict


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class FitResult:
    """The result of a run.

    Examples:
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

    def __repr__(self) -> str:
        if self.summary is None:
            return f"FitResult({str(self.run.path)!r}, stopped)"
        score, speed = self.summary.get("mean_iou"), self.summary.get("images_per_s", 0.0)
        shown = "n/a" if score is None else f"{score:.3f}"
        return f"FitResult({str(self.run.path)!r}, mean IoU {shown}, {speed:,.0f} images/s)"


def conclude(setup: Setup) -> FitResult:
    """Score the best checkpoint on `test` (or `val`) and write the summary."""
    config, world, manifest, reporter = setup.config, setup.world, setup.manifest, setup.reporter
    world.barrier()
    split = scored_split(manifest)
    if split != "test":
        reporter.note(f"These shards have no test split: the scores are of {split}, which the run has seen.")
    own = setup.network.module if isinstance(setup.network, OwnNetwork) else None
    # What the data is held to is this session's affair, whenever the checkpoint was written.
    today = {name: getattr(config, name) for name in ("verify", "on_bad_sample")}
    trained = load_trained(setup.run.path, world.device, network=own, **today)
    source = setup.source(split)
    try:
        with setup.progress.clock.measure("evaluation"):
            test = scores(setup, source, trained.network)
    finally:
        source.close()
    note_absent(setup, test.metrics, split)
    summary = _summary(setup, split, test)
    if skipped := summary["skipped_steps"]:
        reporter.note(f"fp16: {skipped} of {setup.step.steps} steps were left out, their gradients were not finite.")
    if world.is_main:
        setup.run.write_summary(summary)
    return FitResult(run=setup.run, summary=summary, test=test, trained=trained, manifest=manifest)


def _summary(setup: Setup, split: str, test: Evaluation) -> dict[str, Any]:
    config, device, progress = setup.config, setup.world.device, setup.progress
    spent = progress.clock.seconds
    samples = sum(record["samples"] for record in progress.records)
    return {
        "split": split,
        "scored_at": "own size" if config.scores_whole_images else config.size,
        "codes": list(setup.classes.codes),
        **test.metrics,
        "images_per_s": samples / max(spent["data"] + spent["compute"], 1e-9),
        "data_wait_pct": progress.clock.data_wait_pct(),
        "epochs": len(progress.records),
        "best_epoch": progress.best,
        "skipped_steps": setup.step.skipped_steps,
        "damaged_samples": setup.skipped,
        "seconds": progress.seconds,
        "loader": config.loader,
        "device": device_name(device),
        "amp": config.amp,
        "compile": "on" if setup.step.compiled else "off",
        "ranks": setup.world.size,
        "peak_memory_mb": peak_memory_mb(device),
        "verdict": dataclasses.asdict(verdict(config, device, progress.records, test.metrics)),
        "time": dict(spent),
        "parameters": count_parameters(setup.network),
        "versions": versions(),
        "data_digest": setup.manifest.digest,
    }


def device_name(device: torch.device) -> str:
    """`cuda:0 (NVIDIA H100 ...)`, or `cpu` with the number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
