"""Terminal output: progress, tables and sentences."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from petseg.training.terminal import show

if TYPE_CHECKING:
    from petseg.classes import ClassTable
    from petseg.data.shards.manifest import Manifest
    from petseg.data.shards.scan import MaskScan
    from petseg.report.compare import Comparison


def out() -> Console:
    """The console for results, on standard output."""
    return Console(soft_wrap=True, highlight=False)


def command(text: str) -> str:
    """A command to type next, with `uv run` if the present one was started by it."""
    return f"uv run {text}" if os.environ.get("UV_RUN_RECURSION_DEPTH") else text


def error(text: str) -> None:
    """One line on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/] {escape(text)}")


@contextmanager
def progress(
    console: Console, description: str, unit: str = "images"
) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A progress bar with a rate; yields (advance by n, set the total)."""
    began = time.perf_counter()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task(escape(description), total=None, rate="")

        def advance(n: int) -> None:
            done = bar.tasks[task].completed + n
            rate = done / max(time.perf_counter() - began, 1e-9)
            bar.update(task, advance=n, rate=f"{rate:,.0f} {unit}/s")

        yield advance, lambda total: bar.update(task, total=total)


def counted(n: int, what: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def metrics_table(metrics: dict[str, Any], title: str, classes: ClassTable) -> Table:
    """Scores of a split, class by class and over all."""
    table = Table(title=escape(title), title_justify="left")
    for column in ("class", "IoU", "Dice", "recall", "precision"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, value in metrics["iou"].items():
        dice = metrics.get("dice_per_class", {}).get(name)
        accuracy = metrics.get("class_accuracy", {}).get(name)
        precision = metrics.get("precision", {}).get(name)
        table.add_row(escape(name), show(value), show(dice), show(accuracy), show(precision))
    table.add_section()
    table.add_row(
        "mean; pixel accuracy", show(metrics["mean_iou"]), show(metrics.get("dice")), show(metrics["pixel_accuracy"])
    )
    # In the order of the class table, which both follow.
    for group, value in zip(classes.foregrounds, metrics.get("foreground_iou", {}).values(), strict=False):
        names = " or ".join(name for code, name in zip(classes.codes, classes.names, strict=True) if code in group)
        table.add_row(f"foreground: {escape(names)}", show(value), "", "")
    if (baseline := metrics.get("baseline_mean_iou")) is not None:
        table.add_row("one class everywhere", show(baseline), "", "")
    return table


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Scores and costs of runs, and the options in which they differ; a column a run, as there are few of them."""
    figures = Table(title="Runs", title_justify="left")
    options = Table(title="What differs", title_justify="left")
    for table in (figures, options):
        table.add_column("")
        for name in comparison.names:
            table.add_column(escape(name), justify="right", overflow="fold")
    for before, column in zip((None, *comparison.columns), comparison.columns, strict=False):
        if before is not None and before.score != column.score:
            figures.add_section()
        marked = [f"[bold]{text}[/]" if i in column.best else text for i, text in enumerate(column.values)]
        figures.add_row(escape(column.title), *marked)
    for key, values in comparison.options:
        options.add_row(escape(key), *map(escape, values))
    return [figures, options] if comparison.options else [figures]


def mask_table(scan: MaskScan) -> Table:
    """The table of values in masks."""
    table = Table(title=f"{counted(scan.files, 'mask')}", title_justify="left")
    for column in ("colour" if scan.in_colours else "code", "pixels", "masks", ""):
        table.add_column(column, justify="right" if column != "" else "left")
    pixels = sum(found.pixels for found in scan.values.values())
    for value, found in sorted(scan.values.items()):
        name = ", ".join(map(str, value))
        void = "taken for void: ignored" if value == (scan.void(),) else ""
        table.add_row(name, f"{100 * found.pixels / pixels:.2f}%", f"{found.files:,}", void)
    return table


def packing_table(
    manifest: Manifest,
    *,
    there: int,
    bytes_in: int,
    seconds: float,
    converted: int,
    split_by: str,
    unlisted: int,
    ignored: int,
) -> Table:
    """The table of a finished pack; `there` samples of it were packed before."""
    table = Table(title="Packed", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    samples = sum(split.samples for split in manifest.splits.values())
    shards = sum(len(split.shards) for split in manifest.splits.values())
    written = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    for name, split in manifest.splits.items():
        table.add_row(escape(name), f"{counted(split.samples, 'sample')} in {counted(len(split.shards), 'shard')}")
    table.add_row("split by", "chance (70/20/10)" if split_by == "chance" else split_by)
    table.add_section()
    table.add_row("all", f"{counted(samples, 'sample')} in {counted(shards, 'shard')}")
    if there:
        table.add_row("of these, added now", counted(samples - there, "sample"))
    table.add_row("bytes in", f"{bytes_in / 1e6:,.1f} MB" if bytes_in else "drawn")
    table.add_row("bytes out", f"{written / 1e6:,.1f} MB")
    table.add_row("read a sample", f"{written / samples / 1e3:,.1f} KB")
    pixels = sum(manifest.pixel_counts.values()) or 1
    for code, name in zip(manifest.classes.codes, manifest.classes.names, strict=True):
        table.add_row(f"{escape(name)} (code {code})", f"{100 * manifest.pixel_counts.get(code, 0) / pixels:.1f}%")
    for code in manifest.classes.ignored:
        table.add_row(f"ignored (code {code})", f"{100 * manifest.pixel_counts.get(code, 0) / pixels:.1f}%")
    if converted:
        table.add_row("converted to upright RGB JPEG", f"{converted:,}")
    if manifest.progressive:
        table.add_row("progressive JPEGs", f"{manifest.progressive:,}")
    table.add_row("rejected", f"{len(manifest.rejected):,}")
    if unlisted:
        table.add_row("in no split, left out", f"{unlisted:,}")
    if ignored:
        table.add_row("files ignored by name", f"{ignored:,}")
    table.add_row("time", f"{seconds:.1f} s ({(samples - there) / max(seconds, 1e-9):,.0f} images/s)")
    return table
