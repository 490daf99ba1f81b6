"""Training, scoring, predicting and exporting, with their terminal output."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.markup import escape

from petseg.api import evaluate, predict, shards_of, train, write_report
from petseg.cli import console as screen
from petseg.cli.ranks import BEGAN, launch, wants_ranks
from petseg.config import TrainConfig, resolve
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import shards_for
from petseg.data.sources.files import MANIFEST_NAME
from petseg.device import World, local_share, open_world, resolve_device
from petseg.inference.remote_runs import local_run
from petseg.inference.trained import load_trained
from petseg.inference.whole_images import at_own_size
from petseg.run.folder import REPORT, SUMMARY, RunFolder
from petseg.system import process_began
from petseg.training.conclude import FitResult
from petseg.training.resume import Resume, settle
from petseg.training.terminal import ConsoleReporter
from petseg.training.verdict import Verdict

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
    asked, run = settle(flags, resume, config)
    demo = run is None and not asked.shards
    if demo:
        asked = resolve(flags, config, recipe="demo")
    if wants_ranks(ranks, asked.device):
        if not demo:
            Manifest.load(shards_for(asked))  # one sentence here rather than one a rank
        return launch(ranks, args)
    with open_world(asked.device) as world:
        if not world.is_main:
            console = Console(quiet=True)
        if demo:
            asked = dataclasses.replace(asked, shards=str(_demo_shards(console, world, asked)))
        with ConsoleReporter(console) as reporter:
            try:
                result = train(
                    dataclasses.replace(asked, run_dir=str(run.path)) if run else asked,
                    resume=run is not None,
                    reporter=reporter,
                    began=float(os.environ.get(BEGAN) or process_began()),
                )
            except KeyboardInterrupt as stopped:
                if reporter.run is not None and reporter.run.can_resume:
                    raise type(stopped)(f"interrupted. Resume with: {_resume_command(reporter.run)}") from None
                raise
        if world.is_main:
            _conclude(console, result, demo=demo)
        return result.exit_code


def evaluate_command(
    run: str,
    *,
    shards: str | None,
    split: str,
    as_json: bool,
    full_size: bool,
    tta: bool,
    tta_scales: Sequence[float],
    device: str,
    changes: Mapping[str, Any],
) -> None:
    """`petseg eval`.

    Raises:
        PetsegError: bad input.
    """
    console = screen.out()
    trained = load_trained(
        local_run(run), resolve_device(device), **{name: v for name, v in changes.items() if v is not None}
    )
    folder = shards_of(trained, shards)
    with screen.progress(console, f"scoring {split}") as (advance, expect):
        expect(Manifest.load(folder).split(split).samples)
        metrics = evaluate(
            trained,
            split,
            shards=folder,
            full_size=full_size,
            tta=tta,
            tta_scales=tta_scales,
            device=device,
            progress=advance,
        )
    full_size = at_own_size(trained, tta_scales, full_size=full_size)
    size = "each image's own size" if full_size else trained.config.size
    size += ", averaged with the mirror image's scores" if tta else ""
    console.print(screen.metrics_table(metrics, f"{trained.path} on {split} of {folder}, at {size}", trained.classes))
    if skipped := metrics["skipped_samples"]:
        console.print(f"Left out: {screen.counted(skipped, 'damaged sample')} (petseg verify names them).")
    if metrics["absent"]:
        console.print(f"No pixel of {escape(split)} is of {escape(', '.join(metrics['absent']))}.")
    if as_json:
        result = {"run": str(run), "shards": str(folder), "split": split, "full_size": full_size}
        result |= {"tta": tta, "tta_scales": list(tta_scales)}
        result |= {"size": trained.config.size, **metrics}
        print(json.dumps(result))  # noqa: T201 - one line for programs, without a console's wrapping or colours


def predict_command(
    run: str,
    images: Sequence[Path],
    out: Path,
    *,
    device: str,
    probabilities: str,
    amp: str | None,
    tta: bool,
    tta_scales: Sequence[float],
    tile: int,
    overlap: float,
    allow_damaged: bool,
) -> None:
    """`petseg predict`.

    Raises:
        PetsegError: bad input; what could be done was done.
    """
    from petseg.inference.inputs import images_in
    from petseg.inference.predict import Probabilities, in_percent
    from petseg.inference.segment import Segmenter

    console = screen.out()
    where = resolve_device(device)
    segmenter = Segmenter(
        load_trained(local_run(run), where), where, amp=amp, tta=tta, scales=tta_scales, tile=tile, overlap=overlap
    )
    with screen.progress(console, "predicting") as (advance, expect):
        expect(len(images_in(images)))
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
        f"Checked on {escape(report.image)}: the largest difference of a probability is "
        f"{report.max_abs_difference:.1e}, {100 * report.argmax_agreement:.2f}% of the pixels get the same class."
    )


def report_command(run: Path, *, shards: str | None, device: str) -> None:
    """`petseg report`.

    Raises:
        PetsegError: no finished run, or its shards are gone.
    """
    console = screen.out()
    summary = RunFolder(run).summary()
    with screen.progress(console, f"scoring {summary['split']}") as (advance, expect):
        expect(int(summary["samples"]))
        report = write_report(run, shards=shards, device=device, progress=advance)
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


def _resume_command(run: RunFolder) -> str:
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


def _conclude(console: Console, result: FitResult, *, demo: bool) -> None:
    run = result.run.path
    if result.summary is None:
        console.print(f"Stopped and saved. Resume with: {escape(_resume_command(result.run))}")
        return
    if result.trained is None:
        return  # there was nothing left to do, which was said
    summary = result.summary
    console.print(
        screen.metrics_table(
            summary, f"{summary['split']} split, {summary['samples']:,} samples", result.trained.classes
        )
    )
    console.print(
        f"{summary['images_per_s']:,.0f} images/s on {escape(summary['device'])}, loader {summary['loader']}, "
        f"{summary['seconds']:.0f} s in all. {escape(Verdict(**summary['verdict']).sentence())}"
    )
    console.print(f"Report: [bold]{escape(os.path.relpath(run / REPORT))}[/]  (numbers: {escape(str(run / SUMMARY))})")
    if demo:
        fetch, train = screen.command("petseg-shard oxford shards/oxford"), screen.command("petseg-train")
        console.print(
            f"Next, real pets: [bold]{fetch}[/] fetches and packs Oxford-IIIT Pet, then [bold]{train} --shards "
            f"shards/oxford[/]. Your own images: {screen.command('petseg-shard FOLDER OUT')}."
        )
    else:
        next_command = screen.command(f"petseg predict {run} IMAGE --out predictions")
        console.print(f"Try it on images: {escape(next_command)}")
