"""`python -m benchmarks`: every stage of petseg against its peers and its ceiling."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.harness import RESULTS, Row, environment, write_result
from petseg.cli.app import run

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
    out: OutOption = RESULTS,
) -> None:
    """Samples a second of every loader and cache, its peers, and decoding without a pipeline."""
    from benchmarks import loader
    from benchmarks.data import WORK, prepare, source_of

    console = Console(stderr=True)
    made = source_of(source)
    cells, sizes = ((128,), (100,)) if quick else ((0, 128, 256), (100, 128, 224))
    entries = [e for e in loader.ENTRIES if not no_peers or e.kind in {"petseg", "ceiling"}]
    repeats = repeats or (3 if quick else 5)
    window = min(seconds, 0.6) if quick else seconds
    steps = len(cells) * len(sizes) * len(entries) * (1 + repeats)
    rows: list[Row] = []
    with _progress(console, steps) as advance:
        for short_side in cells:
            advance(f"preparing {short_side or 'originals'}", 0)
            cell = prepare(made, short_side)
            for size in sizes:
                rows += loader.run_cell(
                    cell, size, entries, repeats=repeats, seconds=window, scratch=WORK / "peers",
                    install=not quick, progress=lambda name: advance(name, 1),
                )  # fmt: skip
        if quick and not no_peers:
            # Its ratio compares with the notebook on original bytes.
            cell = prepare(made, 0)
            one = [entry for entry in loader.ENTRIES if entry.name == "notebook, 0 workers"]
            rows += loader.run_cell(
                cell, 100, one, repeats=repeats, seconds=window, scratch=WORK / "peers", progress=lambda _: None
            )
    env = environment(
        cell.manifest.source_digest, source=source, samples=cell.manifest.split("train").samples, page_cache="warm"
    )
    _finish(console, "loader", rows, loader.ratios(rows), env, out)


@app.command("report")
def report_command(
    results: Annotated[Path, typer.Option(help="Folder with the result files; the pages go there too.")] = RESULTS,
) -> None:
    """All result files as one HTML page that needs nothing else, and as a Markdown table."""
    from benchmarks.report import write_pages

    for path in write_pages(results):
        print(path)


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Callable[[str, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("measuring", total=steps)
        yield lambda name, n: bar.update(task, advance=n, description=escape(name) or None)


def _finish(
    console: Console, bench: str, rows: list[Row], ratios: dict[str, float | None], env: dict[str, object], out: Path
) -> None:
    table = Table(title=f"{bench} ({env['cpu']}, {env['cores']} cores)", title_justify="left")
    for column in ("what", "where", "median", "smallest", "largest", "note"):
        table.add_column(column, justify="right" if column in {"median", "smallest", "largest"} else "left")
    for row in rows:
        made = row.to_dict()
        where = ", ".join(f"{made[key]}" for key in ("cell", "size") if key in made)
        figures = [f"{made[key]:,.0f}" if made[key] is not None else "" for key in ("median", "min", "max")]
        table.add_row(escape(row.name), where, *figures, escape(row.note))
    console.print(table)
    for name, value in ratios.items():
        if value is not None:
            console.print(f"{name}: {value:.2f}")
    line = write_result(bench, rows, ratios, env, out)
    console.print(f"Written to {escape(str(out / bench))}.json")
    print(line)


if __name__ == "__main__":
    sys.exit(run(app, "python -m benchmarks"))
