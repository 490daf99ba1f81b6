"""Training, scoring, predicting and exporting, with what a person sees of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console
from rich.markup import escape

from petseg.cli import console as screen
from petseg.cli.ranks import launch, wants_ranks
from petseg.config import TrainConfig, read_toml, resolve
from petseg.data.shards.manifest import Manifest
from petseg.data.sources.files import MANIFEST_NAME
from petseg.distributed import World, local_share, open_world, resolve_device
from petseg.errors import PetsegError
from petseg.inference.evaluate import score
from petseg.inference.trained import TrainedModel, load_trained
from petseg.training.run_folder import RUNS, SUMMARY, RunFolder, folder_for, newest_run_folder
from petseg.training.trainer import FitResult, Reporter, fit

Resume = bool | Literal["auto"]
"""Whether a run goes on; `auto` where its folder holds one that saved something."""

DEMO_SAMPLES = 1000
"""Pets drawn for a run without shards."""

DEMO_SHORT_SIDE = 96


def train_command(
    flags: Mapping[str, Any], *, config: Path | None, resume: Resume, ranks: int, args: Sequence[str]
) -> int:
    """`petseg-train`; returns the exit code. `args` is the whole command line, for the `ranks` that it starts.

    Raises:
        PetsegError: bad input.
    """
    console = screen.out()
    run: RunFolder | None = None
    demo = False
    written = read_toml(config) if config else {}
    if resume == "auto":
        folder = flags.get("run_dir") or written.get("run_dir")
        if not folder:
            raise PetsegError("--auto-resume: give the --run-dir that it is to look into.")
        resume = RunFolder(Path(folder)).can_go_on
        if resume:  # by the same command that began it
            flags, config = {**written, **{name: value for name, value in flags.items() if value is not None}}, None
    if resume:
        if config is not None:
            raise PetsegError("--config: a resumed run has its own config.toml; leave --config out.")
        run = _run_to_resume(flags.get("run_dir"))
        resolved = resolve({**flags, "run_dir": None}, run.config)
    else:
        demo = not (flags.get("shards") or written.get("shards"))
        given = dict(flags)
        if demo and not (flags.get("recipe") or written.get("recipe")):
            given["recipe"] = "demo"
        resolved = resolve(given, config)
    if wants_ranks(ranks, resolved.device):
        if not demo:
            Manifest.load(Path(resolved.shards))  # one sentence here rather than one a rank
        return launch(ranks, args)
    with open_world(resolved.device) as world:
        if not world.is_main:
            console = Console(quiet=True)
        if demo:
            resolved = resolve({**resolved.to_dict(), "shards": str(_demo_shards(console, world, resolved))})
        if run is None:
            run = RunFolder(Path(world.broadcast(folder_for(resolved))))
        try:
            with screen.ConsoleReporter(console) as reporter:
                watcher = _with_events(reporter, run, resolved, world)
                result = fit(resolved, run, world, watcher, resume=resume)
            if world.is_main:
                _conclude(console, result, demo=demo, device=world.device)
        except KeyboardInterrupt as stopped:
            if run.can_go_on:
                raise type(stopped)(f"interrupted. Go on with: {_go_on(run)}") from None
            raise
        return result.exit_code


def evaluate_command(
    run: Path,
    *,
    shards: Path | None,
    split: str,
    as_json: bool,
    full_size: bool,
    tta: bool,
    device: str,
    changes: Mapping[str, Any],
) -> None:
    """`petseg eval`.

    Raises:
        PetsegError: bad input.
    """
    from petseg.inference.evaluate import evaluate_full_size

    console = screen.out()
    where = resolve_device(device)
    trained = load_trained(run, where, **{name: value for name, value in changes.items() if value is not None})
    trained = trained.mirrored() if tta else trained
    folder = _shards_of(trained, shards)
    manifest = Manifest.load(folder)
    with screen.progress(console, f"scoring {split}") as (advance, expect):
        expect(manifest.split(split).samples)
        if full_size:
            metrics = evaluate_full_size(trained, folder, manifest, split, device=where, progress=advance)
        else:
            metrics = score(trained, folder, manifest, split, device=where, progress=advance).metrics
    size = "each picture's own size" if full_size else trained.config.size
    size += ", averaged with the mirror image's scores" if tta else ""
    console.print(screen.metrics_table(metrics, f"{trained.path} on {split} of {folder}, at {size}", trained.classes))
    if skipped := metrics["skipped_samples"]:
        console.print(f"Left out: {screen.counted(skipped, 'damaged sample')} (petseg verify names them).")
    if metrics["absent"]:
        console.print(f"No pixel of {escape(split)} is of {escape(', '.join(metrics['absent']))}.")
    if as_json:
        result = {"run": str(run), "shards": str(folder), "split": split, "full_size": full_size, "tta": tta}
        result |= {"size": trained.config.size, **metrics}
        print(json.dumps(result))  # noqa: T201 - one line for programs, without a console's wrapping or colours


def predict_command(
    run: Path,
    images: Sequence[Path],
    out: Path,
    *,
    device: str,
    probabilities: str,
    amp: str | None,
    tta: bool,
    tile: int,
    overlap: float,
    allow_damaged: bool,
) -> None:
    """`petseg predict`.

    Raises:
        PetsegError: bad input; what could be done was done.
    """
    from petseg.inference.photos import pictures_in
    from petseg.inference.predict import Probabilities, in_percent, predict
    from petseg.inference.segment import Segmenter

    console = screen.out()
    where = resolve_device(device)
    segmenter = Segmenter(load_trained(run, where), where, amp=amp, tta=tta, tile=tile, overlap=overlap)
    with screen.progress(console, "predicting") as (advance, expect):
        expect(len(pictures_in(images)))
        done = predict(
            segmenter,
            images,
            out,
            probabilities=cast(Probabilities, probabilities),
            allow_damaged=allow_damaged,
            progress=advance,
        )
    for one in done[:20]:
        shares = ", ".join(f"{name} {in_percent(share)}" for name, share in one.shares.items())
        console.print(f"{escape(str(one.image))}: {escape(shares)}")
    console.print(
        f"{len(done)} mask(s) (.png, the class codes) and overlay(s) (_overlay.jpg) are in {escape(str(out))}"
        + (f", with each class's probabilities (_pCODE.{probabilities})." if probabilities else ".")
    )


def export_command(run: Path, fmt: str, out: Path | None, image: Path | None, *, dynamic_size: bool) -> None:
    """`petseg export`.

    Raises:
        PetsegError: bad input, or a file that does not compute what the network does.
    """
    from petseg.inference.export import export

    console = screen.out()
    with console.status("exporting and checking ..."):
        report = export(run, fmt, out, image=image, dynamic_size=dynamic_size)  # type: ignore[arg-type]
    least = 2 * report.multiple
    size = f"H, W] (multiples of {report.multiple}, {least} or more)" if least else "{}, {}]".format(*report.size)
    takes = f"takes images f32[N, 3, {size} in 0-1 and gives probabilities."
    console.print(escape(f"{report.path} ({report.bytes / 1e6:.1f} MB) {takes}"))
    console.print(
        f"Checked on {escape(report.picture)}: the largest difference of a probability is "
        f"{report.max_abs_difference:.1e}, {100 * report.argmax_agreement:.2f}% of the pixels get the same class."
    )


def report_command(run: Path, *, shards: Path | None, device: str) -> None:
    """`petseg report`.

    Raises:
        PetsegError: no finished run, or its shards are gone.
    """
    summary = RunFolder(run).summary()
    if summary is None:
        raise PetsegError(f"{run} has no {SUMMARY}: give the folder of a run that reached its end.")
    from petseg.report.panels import report_run

    console = screen.out()
    where = resolve_device(device)
    trained = load_trained(run, where)
    folder = _shards_of(trained, shards)
    manifest = Manifest.load(folder)
    split = summary["split"]
    with screen.progress(console, f"scoring {split}") as (advance, expect):
        expect(manifest.split(split).samples)
        scored = score(trained, folder, manifest, split, device=where, progress=advance)
    report = report_run(run, trained, folder, manifest, split, scored.image_iou, where)
    console.print(f"Report: [bold]{escape(os.path.relpath(report))}[/]")


def compare_command(runs: Sequence[Path], out: Path) -> None:
    """`petseg compare`.

    Raises:
        PetsegError: fewer than two runs, no run, or a page that cannot be written.
    """
    from petseg.report.compare import compare, write_comparison

    console = screen.out()
    comparison = compare(runs)
    write_comparison(comparison, out)
    for table in screen.comparison_tables(comparison):
        console.print(table)
    for note in comparison.notes:
        console.print(escape(note))
    console.print(f"Curves: [bold]{escape(os.path.relpath(out))}[/]")


def _shards_of(trained: TrainedModel, given: Path | None) -> Path:
    """The shards that a command is to use: those that were given, or the run's own."""
    if given is not None:
        return given
    own = Path(trained.config.shards)
    if not own.is_dir():
        raise PetsegError(f"{own}, where the run's shards were, is no folder any more: give --shards.")
    return own


def _run_to_resume(run_dir: str | None) -> RunFolder:
    run = RunFolder(Path(run_dir)) if run_dir else newest_run_folder(RUNS)
    if not run.can_go_on:
        raise PetsegError(
            f"--resume: nothing to resume: {run.path} has no {run.last.name} with its {run.config.name}; give the "
            "--run-dir of a run that saved one."
        )
    return run


def _go_on(run: RunFolder) -> str:
    every = local_share()[1]
    return screen.command(f"petseg-train --resume --run-dir {run.path}" + (f" --ranks {every}" if every > 1 else ""))


def _demo_shards(console: Console, world: World, config: TrainConfig) -> Path:
    """Shards of drawn pets, made on the first run and used again."""
    from petseg.cli.shards import pack_with_progress
    from petseg.data.shards.options import PackOptions
    from petseg.data.sources.synthetic import SyntheticSource

    folder = Path("shards") / f"synthetic-{DEMO_SAMPLES}"
    console.print(
        f"No --shards were given: the recipe is [bold]{config.recipe}[/], on {DEMO_SAMPLES:,} drawn cats and dogs."
    )
    if world.is_main and not (folder / MANIFEST_NAME).exists():
        options = PackOptions(split="random", short_side=DEMO_SHORT_SIDE)
        pack_with_progress(console, SyntheticSource(DEMO_SAMPLES), folder, options)
    elif world.is_main:
        console.print(f"They are in {escape(str(folder))} already.")
    world.barrier()
    return folder


def _with_events(reporter: screen.ConsoleReporter, run: RunFolder, config: TrainConfig, world: World) -> Reporter:
    if not (config.tensorboard and world.is_main):
        return reporter
    from petseg.training.tensorboard import EventWriter

    return EventWriter(reporter, run.path)


def _conclude(console: Console, result: FitResult, *, demo: bool, device: torch.device) -> None:
    run = result.run.path
    if result.summary is None:
        console.print(f"Stopped and saved. Go on with: {escape(_go_on(result.run))}")
        return
    if result.trained is None:
        return  # there was nothing left to do, which was said
    from petseg.api import report_result

    summary = result.summary
    with console.status("writing the report ..."):
        report = report_result(result, device)
    console.print(
        screen.metrics_table(
            summary, f"{summary['split']} split, {summary['samples']:,} samples", result.trained.classes
        )
    )
    console.print(
        f"{summary['images_per_s']:,.0f} images/s on {escape(summary['device'])}, loader {summary['loader']}, "
        f"{summary['seconds']:.0f} s in all. {escape(summary['verdict'].capitalize())}; to go faster try "
        f"[bold]{escape(summary['advice'])}[/]."
    )
    console.print(f"Report: [bold]{escape(os.path.relpath(report))}[/]  (numbers: {escape(str(run / SUMMARY))})")
    if demo:
        fetch, train = screen.command("petseg-shard oxford shards/oxford"), screen.command("petseg-train")
        console.print(
            f"Next, real pets: [bold]{fetch}[/] fetches and packs Oxford-IIIT Pet, then [bold]{train} --shards "
            f"shards/oxford[/]. Your own pictures: {screen.command('petseg-shard FOLDER OUT')}."
        )
    else:
        next_command = screen.command(f"petseg predict {run} PHOTO --out predictions")
        console.print(f"Try it on photos: {escape(next_command)}")
