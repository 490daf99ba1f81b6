"""`python -m benchmarks`: every stage of petseg against its peers and its ceiling."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.harness import RESULTS, Row, by_chart, environment, number, remarks, write_result
from petseg.cli.app import run

if TYPE_CHECKING:
    from benchmarks.data import Cell

console = Console(stderr=True)
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

SourceOption = Annotated[str, typer.Option(help="synthetic, or whatever petseg-shard takes as SOURCE.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="One cell, three repeats: under two minutes on two cores.")]
RepeatsOption = Annotated[int, typer.Option(help="Repeats; 0 for 5, or 3 under --quick.")]
OutOption = Annotated[Path, typer.Option(help="Folder for the result file.")]
NoPeersOption = Annotated[bool, typer.Option("--no-peers", help="petseg and its ceilings alone.")]


@app.callback()
def commands() -> None:
    """Measure every stage of petseg against its peers and its ceiling."""


@app.command("loader")
def loader_command(
    source: SourceOption = "synthetic",
    quick: QuickOption = False,
    repeats: RepeatsOption = 0,
    no_peers: NoPeersOption = False,
    seconds: Annotated[float, typer.Option(help="Length of one window.")] = 1.5,
    short_side: Annotated[list[int], typer.Option(help="Only this way of packing, in pixels; 0 for originals.")] = [],  # noqa: B006
    size: Annotated[list[int], typer.Option(help="Only batches of this size, in pixels.")] = [],  # noqa: B006
    out: OutOption = RESULTS,
) -> None:
    """Samples a second of every loader and cache, its peers, and decoding without a pipeline."""
    from benchmarks import loader
    from benchmarks.data import QUICK_SAMPLES, SAMPLES, WORK, prepare, source_of

    made = source_of(source, QUICK_SAMPLES if quick else SAMPLES)
    cells = short_side or ([128] if quick else [0, 128, 256])
    sizes = size or ([100] if quick else [100, 128, 224])
    entries = [e for e in loader.ENTRIES if not no_peers or e.kind in {"petseg", "ceiling"}]
    repeats = _repeats(repeats, quick=quick)
    window = min(seconds, 0.4) if quick else seconds
    threads = [] if quick else loader.threaded(peers=not no_peers)
    steps = len(cells) * len(sizes) * len(entries) * (1 + repeats) + len(cells) * (repeats + 1)
    steps += len(threads) * len(loader.thread_counts()) * (1 + repeats)
    rows: list[Row] = []
    with _progress(steps) as advance:
        for side in cells:
            advance(f"preparing {side or 'originals'}", 0)
            cell = prepare(made, side)
            for pixels in sizes:
                rows += loader.run_cell(
                    cell, pixels, entries, repeats=repeats, seconds=window, scratch=WORK / "peers",
                    install=not quick, progress=lambda name: advance(name, 1),
                )  # fmt: skip
            rows += loader.run_stages(cell, sizes[0], repeats=repeats, progress=lambda name: advance(name, 1))
            if threads and side == 128:
                rows += loader.run_threads(
                    cell, sizes[0], peers=not no_peers, repeats=repeats, seconds=window, scratch=WORK / "peers",
                    progress=lambda name: advance(name, 1),
                )  # fmt: skip
        if quick and not no_peers:
            # Its ratio compares with the notebook on original bytes.
            cell = prepare(made, 0)
            one = [entry for entry in loader.ENTRIES if entry.name == "notebook, 0 workers"]
            rows += loader.run_cell(
                cell, 100, one, repeats=repeats, seconds=window, scratch=WORK / "peers", progress=lambda _: None
            )
    _finish("loader", rows, loader.ratios(rows), _cell_environment(cell, source), out)


@app.command("step")
def step_command(
    quick: QuickOption = False,
    repeats: RepeatsOption = 0,
    no_peers: NoPeersOption = False,
    size: Annotated[int, typer.Option(help="Height and width of the images in pixels.")] = 100,
    batch: Annotated[int, typer.Option(help="Samples a step; 0 for 32, or 8 under --quick.")] = 0,
    seconds: Annotated[float, typer.Option(help="Length of one window; one step at least.")] = 5.0,
    out: OutOption = RESULTS,
) -> None:
    """One training step by itself: the notebook's loop, one change to it at a time, and petseg's."""
    from benchmarks import step

    entries = step.entries(peers=not no_peers, compiled=not quick)
    repeats, batch = _repeats(repeats, quick=quick), batch or (8 if quick else 32)
    rows: list[Row] = []
    recipes = ["default"] if quick else list(step.RECIPES)
    with _progress(len(recipes) * (len(entries) + len(step.CEILINGS)) * (1 + repeats)) as advance:
        for recipe in recipes:
            advance(recipe, 0)
            rows += step.run_network(
                recipe, size, batch, entries, repeats=repeats, seconds=min(seconds, 1.0) if quick else seconds,
                progress=lambda name: advance(name, 1),
            )  # fmt: skip
    env = environment("random pixels", page_cache="not read")
    _finish("step", rows, step.ratios(rows), env, out)


@app.command("train")
def train_command(
    source: SourceOption = "synthetic",
    quick: QuickOption = False,
    repeats: RepeatsOption = 0,
    no_peers: NoPeersOption = False,
    seconds: Annotated[float, typer.Option(help="Length of one window; two steps at least.")] = 5.0,
    out: OutOption = RESULTS,
) -> None:
    """Training from shards to updated weights, beside the loader and the step alone."""
    from benchmarks import train
    from benchmarks.data import QUICK_SAMPLES, SAMPLES, prepare, source_of
    from petseg.data.loaders.build import resolve_loader
    from petseg.device import resolve_device

    made = source_of(source, QUICK_SAMPLES if quick else SAMPLES)
    repeats = _repeats(repeats, quick=quick)
    loaders = [resolve_loader("auto", resolve_device("auto"))] if quick else list(train.LOADERS)
    plans = train.QUICK if quick else train.PLANS
    steps = sum(len(train.contenders(recipe, loaders, peers=not no_peers)) for _, recipe in plans) * (1 + repeats)
    rows: list[Row] = []
    with _progress(steps) as advance:
        for short_side, recipe in plans:
            advance(f"preparing {short_side or 'originals'}", 0)
            cell = prepare(made, short_side)
            rows += train.run_plan(
                cell, recipe, 100 if quick else 0, loaders, peers=not no_peers, repeats=repeats,
                seconds=min(seconds, 1.0) if quick else seconds, progress=lambda name: advance(name, 1),
            )  # fmt: skip
    _finish("train", rows, train.ratios(rows), _cell_environment(cell, source), out)


@app.command("pack")
def pack_command(
    source: SourceOption = "synthetic",
    quick: QuickOption = False,
    repeats: RepeatsOption = 0,
    no_peers: NoPeersOption = False,
    out: OutOption = RESULTS,
) -> None:
    """From source files to shards, beside one process with webdataset's ShardWriter."""
    from benchmarks import pack
    from benchmarks.data import QUICK_SAMPLES, SAMPLES, WORK, prepare, source_of

    counts = (QUICK_SAMPLES,) if quick else (SAMPLES, 3000)
    repeats = _repeats(repeats, quick=quick)
    entries = [
        entry
        for entry in pack.ENTRIES
        if (entry.kind == "petseg" or not no_peers) and (entry.short_side == 128 or not quick)
    ]
    rows: list[Row] = []
    with _progress(len(counts) * len(entries) * repeats) as advance:
        for count in counts:
            advance("preparing originals", 0)
            cell = prepare(source_of(source, count), 0)
            rows += pack.run_size(
                cell, entries, repeats=repeats, scratch=WORK / "packing", progress=lambda name: advance(name, 1)
            )
    _finish("pack", rows, pack.ratios(rows), _cell_environment(cell, source), out)


@app.command("scale")
def scale_command(
    quick: QuickOption = False,
    repeats: RepeatsOption = 0,
    no_peers: NoPeersOption = False,
    out: OutOption = RESULTS,
) -> None:
    """What a data set costs before its first sample is decoded: 10,000 to 10,000,000 made-up samples."""
    from benchmarks import scale, shuffle
    from benchmarks.data import WORK

    counts = scale.QUICK if quick else scale.SAMPLES
    repeats = _repeats(repeats, quick=quick)
    with _progress(len(counts) * repeats + len(shuffle.WAYS)) as advance:
        rows = scale.run_all(WORK, counts, peers=not no_peers, repeats=repeats, progress=lambda name: advance(name, 1))
        shuffled = shuffle.run_all(lambda name: advance(name, 1))
    env = environment("no pixels", page_cache="warm")
    _finish("scale", [*rows, *shuffled], scale.ratios(rows), env, out)


@app.command("remote")
def remote_command(
    source: SourceOption = "synthetic",
    samples: Annotated[int, typer.Option(help="Drawn images.")] = 4000,
    quick: QuickOption = False,
    repeats: RepeatsOption = 0,
    no_peers: NoPeersOption = False,
    out: OutOption = RESULTS,
) -> None:
    """Shards of a store on loopback beside the same shards on the disk."""
    from benchmarks import remote
    from benchmarks.data import prepare, source_of

    cell = prepare(source_of(source, 200 if quick else samples), 0)
    env = _cell_environment(cell, source)
    repeats = _repeats(repeats, quick=quick)
    steps = sum(map(len, remote.WAYS.values())) + (0 if no_peers else 1 + len(remote.PEERS))
    with _progress(repeats * steps) as advance:
        rows = remote.run_all(cell.shards, repeats=repeats, progress=lambda name: advance(name, 1))
        rows += [] if no_peers else remote.run_peers(cell, repeats=repeats, progress=lambda name: advance(name, 1))
    _finish("remote", rows, remote.ratios(rows), env, out)


class LearnSet(StrEnum):
    """What `learn` learns."""

    pets = "pets"
    camvid = "camvid"


@app.command("learn")
def learn_command(
    source: SourceOption = "synthetic",
    which: Annotated[
        LearnSet,
        typer.Option("--set", help="pets; or camvid, whose SOURCE is a folder with train/, trainannot/ and so on."),
    ] = LearnSet.pets,
    quick: QuickOption = False,
    no_peers: NoPeersOption = False,
    seeds: Annotated[int, typer.Option(help="Runs of each; 0 for 3, or 1 under --quick.")] = 0,
    minutes: Annotated[
        float, typer.Option(help="Longest run; 0 for 1.5 times the notebook's, or 25 minutes of camvid.")
    ] = 0.0,
    out: OutOption = RESULTS,
) -> None:
    """Test mean IoU against seconds of training, on two splits of one source; or of whole streets."""
    if which is LearnSet.camvid:
        _learn_scenes(source, quick=quick, no_peers=no_peers, seeds=seeds or 1, minutes=minutes, out=out)
        return
    from benchmarks import learn
    from petseg.data.shards.manifest import Manifest
    from petseg.data.sources.resolve import resolve_source
    from petseg.data.sources.synthetic import SyntheticSource

    samples = learn.QUICK_SAMPLES if quick else learn.SAMPLES
    made = SyntheticSource(samples, min_side=333, max_side=500) if source == "synthetic" else resolve_source(source)
    data = learn.prepare(made)
    entries = [entry for entry in learn.ENTRIES if not no_peers or entry.kind == "petseg"]
    runs = range(seeds or (1 if quick else 3))
    manifest = Manifest.load(data / "shards")
    train, test = (manifest.splits[split].samples for split in ("train", "test"))
    facts = {"source": Path(source).name, "samples": train, "test_samples": test, "page_cache": "warm"}
    env = environment(manifest.source_digest, **facts)
    rows: list[Row] = []
    with _progress(len(runs) * (1 + len(entries))) as advance:
        results = learn.run_all(
            data, entries, seeds=runs, marks=learn.QUICK_MARKS if quick else learn.MARKS, minutes=minutes,
            progress=lambda name: advance(name, 1),
        )  # fmt: skip
        for done, (clock, rows) in enumerate(results, start=1):
            env["t_seconds"] = clock
            if done < len(runs):  # hours may be left to go
                write_result("learn", rows, learn.ratios(rows), env, out)
    _finish("learn", rows, learn.ratios(rows), env, out)


def _learn_scenes(source: str, *, quick: bool, no_peers: bool, seeds: int, minutes: float, out: Path) -> None:
    from benchmarks import scenes
    from petseg.data.shards.manifest import Manifest

    data = scenes.prepare(scenes.source_of(source))
    manifest = Manifest.load(data / "shards")
    entries = [scenes.PETSEG] if no_peers else [scenes.PETSEG, scenes.SMP]
    train, val = (manifest.splits[split].samples for split in ("train", "val"))
    facts = {"source": Path(source).name, "samples": train, "test_samples": val, "page_cache": "warm"}
    env = environment(manifest.source_digest, **facts)
    minutes = minutes or (scenes.QUICK_MINUTES if quick else scenes.MINUTES)
    rows: list[Row] = []
    with _progress(seeds * len(entries)) as advance:
        for rows in scenes.run_all(
            data, entries, seeds=range(seeds), minutes=minutes, progress=lambda name: advance(name, 1)
        ):
            write_result("learn-camvid", rows, scenes.ratios(rows), env, out)
    _finish("learn-camvid", rows, scenes.ratios(rows), env, out)


@app.command("report")
def report_command(
    results: Annotated[Path, typer.Option(help="Folder with the result files; the pages go there too.")] = RESULTS,
) -> None:
    """All result files as one HTML page that needs nothing else, and as a Markdown table."""
    from benchmarks.report import write_pages

    for path in write_pages(results):
        print(path)


def _repeats(given: int, *, quick: bool) -> int:
    return given or (3 if quick else 5)


def _cell_environment(cell: Cell, source: str) -> dict[str, Any]:
    samples = cell.manifest.split("train").samples
    return environment(cell.manifest.source_digest, source=Path(source).name, samples=samples, page_cache="warm")


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("measuring", total=steps)
        yield lambda name, n: bar.update(task, advance=n, description=escape(name) or None)


def _finish(bench: str, rows: list[Row], ratios: dict[str, float | None], env: dict[str, Any], out: Path) -> None:
    for chart, mine in by_chart([row.to_dict() for row in rows]).items():
        table = Table(title=f"{escape(chart)} ({mine[0]['unit']})", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("what", ratio=3)
        for column in ("median", "smallest", "largest"):
            table.add_column(column, justify="right")
        table.add_column("note", ratio=4)
        for row in mine:
            figures = [number(row[key]) if row[key] is not None else "" for key in ("median", "min", "max")]
            table.add_row(escape(row["name"]), *figures, escape(remarks(row)))
        console.print(table)
    for name, value in ratios.items():
        if value is not None:
            console.print(f"{name}: {value:.2f}")
    line = write_result(bench, rows, ratios, env, out)
    console.print(f"Written to {escape(str(out / bench))}.json")
    print(line)


if __name__ == "__main__":
    sys.exit(run(app, "python -m benchmarks"))
