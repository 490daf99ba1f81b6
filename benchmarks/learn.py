"""Test mean IoU against seconds of training: the notebook's loop, a plain smp loop, and petseg's recipes."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import WORK, folder_for, write_files
from benchmarks.harness import ContenderError, Row, peer
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.sources import Source
from petseg.system import usable_cores

NOTEBOOK_EPOCHS = 5
"""What the notebook trains for; the seconds that it takes are T."""

MARKS, QUICK_MARKS = (0.25, 0.5, 1.0, 1.5), (1.0,)
"""Times of T at which petseg's runs end. Each is a run of its own, since a schedule is made for its end."""

LOOP_LONGEST = 3.0
"""Times of T that a loop takes at most to reach `WANTED`."""

AT, WANTED = {0.5: "at_half_t", 1.0: "at_t", 1.5: "at_one_and_a_half_t"}, 0.60
SHORT_SIDE = 128
PLACES = 8
"""Points of a curve that are kept, evenly spaced over its epochs; the notebook's five are all kept."""

SAMPLES, QUICK_SAMPLES = 500, 60
LIMIT_SECONDS = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One contender."""

    name: str
    kind: str
    script: str
    budgets: bool = False
    """Whether it is run once for each of `MARKS`; else it is scored after each epoch of one run."""
    marks: tuple[float, ...] = ()
    """Those of the marks that it is run for; all where there are none."""
    options: tuple[str, ...] = ()
    """More of its command line."""


NOTEBOOK = Entry(name="the notebook", kind="notebook", script="learn_notebook.py")
SMP = Entry(name="smp Unet-resnet18, plain loop", kind="library", script="learn_smp.py")
DEFAULT = Entry(name="petseg", kind="petseg", script="learn_petseg.py", budgets=True)
WIDER = Entry(
    name="petseg --width 32",
    kind="petseg",
    script="learn_petseg.py",
    budgets=True,
    marks=(1.5,),
    options=("--width", "32"),
)
ENTRIES = (DEFAULT, WIDER, SMP)


@dataclass(frozen=True, slots=True)
class Point:
    """Scores after so many seconds of training."""

    seconds: float
    """Waiting for data included, evaluation not."""
    mean_iou: float
    facts: dict[str, Any]


def prepare(source: Source) -> Path:
    """Shards of a source (packed at 128), and its train split's original files beside them; kept between runs."""
    folder, whole = folder_for("learn", source, WORK)
    if whole:
        return folder
    split = "official" if any(pair.split for pair in source.listing().pairs) else "random"
    for short_side, name in ((SHORT_SIDE, "shards"), (0, "originals")):
        pack(source, folder / name, PackOptions(split=split, short_side=short_side), workers=usable_cores())
    write_files(folder / "originals", folder / "files")
    shutil.rmtree(folder / "originals")
    (folder / "whole").touch()
    return folder


def run_entry(entry: Entry, data: Path, seed: int, seconds: float, *extra: str) -> list[Point]:
    """The points of one run.

    Raises:
        ContenderError: it ended without any, or took too long.
    """
    command = [*peer(entry.script), "--data", str(data), "--seed", str(seed), "--seconds", f"{seconds:.1f}"]
    try:
        done = subprocess.run([*command, *extra], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ContenderError(f"it took more than {LIMIT_SECONDS} s") from None
    points = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or not points:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ContenderError((lines[-1] if lines else f"it ended with code {done.returncode}")[:300])
    return [Point(point.pop("training"), point.pop("mean_iou"), point) for point in points]


def run_all(
    data: Path,
    entries: Sequence[Entry],
    *,
    seeds: Sequence[int],
    marks: Sequence[float] = MARKS,
    minutes: float,
    progress: Callable[[str], None],
) -> Iterator[tuple[float, list[Row]]]:
    """Run every contender with every seed; seeds are the outer loop, so that the machine's moods are shared.

    Args:
        data: as `prepare` made it.
        entries: beside the notebook, whose time is T.
        seeds: of weights and order.
        marks: times of T at which petseg's runs end.
        minutes: longest run; 0 for all of `marks`, and `LOOP_LONGEST` of a loop.
        progress: called with a contender's name after each run.

    Yields:
        After each seed, of all until then: T in seconds, and one row for each contender and place on its curve.
    """
    curves: dict[str, list[list[Point]]] = {entry.name: [] for entry in (NOTEBOOK, *entries)}
    failed: dict[str, str] = {}
    times: list[float] = []
    for seed in seeds:
        five = run_entry(NOTEBOOK, data, seed, LIMIT_SECONDS, "--epochs", str(NOTEBOOK_EPOCHS))
        curves[NOTEBOOK.name].append(five)
        times.append(five[-1].seconds)
        progress(NOTEBOOK.name)
        clock = times[0]  # the first seed's, so that all seeds have the same budgets
        for entry in entries:
            own = _marks_of(entry, marks)
            if entry.name not in failed and own:
                try:
                    curves[entry.name].append(_curve(entry, data, seed, clock, own, 60 * minutes))
                except ContenderError as error:
                    failed[entry.name] = f"failed: {error}"
            progress(entry.name)
        clock = statistics.median(times)
        yield (
            clock,
            [
                row
                for entry in (NOTEBOOK, *entries)
                for row in _rows(entry, curves[entry.name], clock, marks, failed.get(entry.name, ""))
            ],
        )


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """Mean IoU of petseg at shares of T, and how many times as long the plain smp loop takes to 0.60."""
    found: dict[str, float | None] = {}
    for mark, name in AT.items():
        at = [row for row in rows if row.name == f"{DEFAULT.name}, {_mark(mark)}" and row.samples]
        found[name] = statistics.median(at[0].samples) if at else None
    ours, theirs = (seconds_to(WANTED, rows, entry.name) for entry in (DEFAULT, SMP))
    return {**found, "seconds_to_060": theirs / ours if ours and theirs else None}


def seconds_to(wanted: float, rows: Sequence[Row], name: str) -> float | None:
    """Seconds of training after which the median over seeds first reaches `wanted`, by straight lines between points.

    None if it never does.
    """
    mine = sorted(
        (r.facts["seconds"], statistics.median(r.samples)) for r in rows if r.facts["line"] == name and r.samples
    )
    before = (0.0, 0.0)
    for seconds, score in mine:
        if score >= wanted:
            share = (wanted - before[1]) / (score - before[1]) if score > before[1] else 1.0
            return float(before[0] + share * (seconds - before[0]))
        before = (seconds, score)
    return None


def _marks_of(entry: Entry, marks: Sequence[float]) -> list[float]:
    return [mark for mark in marks if mark in (entry.marks or marks)]


def _curve(entry: Entry, data: Path, seed: int, clock: float, marks: Sequence[float], longest: float) -> list[Point]:
    if not entry.budgets:
        most = longest or LOOP_LONGEST * clock
        found = run_entry(entry, data, seed, most, "--until", str(WANTED))
        return [found[round(k * (len(found) - 1) / (PLACES - 1))] for k in range(PLACES)]
    budgets = [mark * clock for mark in marks if not longest or mark * clock <= 1.01 * longest]
    points: list[Point] = []
    share = 1.0
    for seconds in budgets or [marks[0] * clock]:
        # T is time of training, and a run is given the time of its whole command.
        points.append(run_entry(entry, data, seed, seconds / share, *entry.options)[-1])
        share = points[-1].seconds / points[-1].facts["whole"]
    return points


def _rows(
    entry: Entry, curves: Sequence[Sequence[Point]], clock: float, marks: Sequence[float], note: str
) -> list[Row]:
    """One row for each place on the curve that all seeds have: its scores, and the median of its seconds."""
    chart = f"Test mean IoU against seconds of training (T is {clock:.0f} s)"
    shared = {"chart": chart, "kind": entry.kind, "line": entry.name}
    own = _marks_of(entry, marks)
    if entry.budgets and not own:
        return []
    rows = []
    for place, points in enumerate(zip(*curves, strict=False)):
        seconds = statistics.median(point.seconds for point in points)
        epochs = statistics.median(point.facts["epochs"] for point in points)
        where = _mark(own[place]) if entry.budgets else f"epoch {epochs:.0f}"
        waits, scored = (statistics.median(point.facts[what] for point in points) for what in ("waiting", "evaluation"))
        rows.append(
            Row(
                name=f"{entry.name}, {where}", unit="mean IoU", samples=[point.mean_iou for point in points], note=note,
                facts={
                    **shared, "seconds": seconds, "curves": [point.facts for point in points],
                    "detail": f"{seconds:.0f} s, {waits:.1f} of them waiting for data; {scored:.1f} s of evaluation"
                    + _more(points),
                },
            )
        )  # fmt: skip
    return rows or [Row(name=entry.name, unit="mean IoU", note=note, facts={**shared, "seconds": 0.0})]


def _more(points: Sequence[Point]) -> str:
    """What petseg's own runs say beside."""
    if "mirrored" not in points[0].facts:
        return ""
    mirrored, whole = (statistics.median(point.facts[name] for point in points) for name in ("mirrored", "whole"))
    return f"; the whole command {whole:.0f} s; {mirrored:.3f} averaged with the mirror image's scores"


def _mark(mark: float) -> str:
    return f"{mark:g} T"
