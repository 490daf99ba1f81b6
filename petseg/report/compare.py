"""Several runs side by side: a table, the options in which they differ, and their curves on shared axes."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from petseg.errors import PetsegError
from petseg.report import words
from petseg.report.curves import DASHES, Chart, chart, epochs_of, line
from petseg.report.foregrounds import foregrounds_of
from petseg.report.looks import class_looks
from petseg.report.page import write_page
from petseg.report.words import mapping, number
from petseg.run.folder import REPORT, RunFolder

MOST_CLASSES = 6
"""Classes that get a column and a chart each; with more, only their mean is shown."""

_OWN = {"run_dir"}
"""Options that differ by nature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One figure of every run."""

    title: str
    values: tuple[str, ...]
    """One a run, in words."""
    best: frozenset[int]
    """Which of them are the best; empty where none is better than another."""
    score: bool
    """It says how good a run is; others say how long it took and what it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs side by side."""

    names: tuple[str, ...]
    reports: tuple[Path | None, ...]
    """Each run's report, where it has one."""
    columns: tuple[Column, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]
    """Name of an option and its value in each run, where they are not all the same."""
    notes: tuple[str, ...]
    """Reasons against comparing the figures."""
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    path: Path
    summary: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]


def compare(runs: Sequence[Path]) -> Comparison:
    """Read runs, finished or still going, and put them side by side.

    Args:
        runs: their folders, two or more; one that is named twice counts once.

    Raises:
        PetsegError: fewer than two, a folder that holds no epoch's record and no summary, or a damaged file.
    """
    folders = list({run.resolve(): run for run in runs}.values())
    if len(folders) < 2:
        raise PetsegError("a comparison takes two runs or more: name their folders.")
    found = [_read(folder) for folder in folders]
    names = _names(folders)
    classes = _shared_classes(found)
    return Comparison(
        names=names,
        reports=tuple(run.path / REPORT if (run.path / REPORT).is_file() else None for run in found),
        columns=tuple(_columns(found, classes)),
        options=tuple(_differing([run.config for run in found])),
        notes=tuple(_notes(found, names, classes)),
        charts=tuple(_charts(found, names, classes)),
    )


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as one HTML file that asks for nothing else.

    Args:
        comparison: what `compare` found.
        path: the file.

    Raises:
        PetsegError: it cannot be written.
    """
    if path.is_dir() or not path.name:
        raise PetsegError(f"--out: {path} is a folder; give the name of an HTML file.")
    here = path.resolve().parent
    write_page(
        path,
        "compare.html.j2",
        comparison=comparison,
        looks=class_looks(None, comparison.names, len(comparison.names)),
        links=[
            quote(Path(os.path.relpath(report.resolve(), here)).as_posix()) if report else ""
            for report in comparison.reports
        ],
    )


def _read(folder: Path) -> _Run:
    if not folder.is_dir():
        raise PetsegError(f"no such run: {folder}; give the folder that petseg-train wrote.")
    run = RunFolder(folder)
    records = run.records()
    summary = run.summary() if run.is_finished else {}
    if not records and not summary:
        raise PetsegError(f"{folder} is not a run's folder, or no epoch of it was finished yet.")
    return _Run(folder, summary, records, run.resolved())


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Names of folders, with as many of the folders above as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    most = max(map(len, parts))
    for depth in range(1, most + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return tuple(names)


def _shared_classes(runs: Sequence[_Run]) -> list[str] | None:
    """The classes of all runs, None where they differ."""
    every = [list(_iou_of(run)) for run in runs]
    return every[0] if all(names == every[0] for names in every) else None


def _iou_of(run: _Run) -> Mapping[str, Any]:
    known = mapping(run.summary.get("iou"))
    return known or next((mapping(val.get("iou")) for val in map(_val, run.records) if val.get("iou")), {})


def _val(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(record.get("val"))


def _columns(runs: Sequence[_Run], classes: list[str] | None) -> list[Column]:
    def of(key: str) -> list[float | None]:
        return [number(run.summary.get(key)) for run in runs]

    best_val = [max((v for r in run.records if (v := number(_val(r).get("mean_iou"))) is not None), default=None)
                for run in runs]  # fmt: skip
    columns = [_column("mean IoU", of("mean_iou"), words.score, higher=True, score=True)]
    if classes is not None:
        foregrounds = [dict(foregrounds_of(run.summary, None, classes)) for run in runs]
        for name in dict.fromkeys(name for each in foregrounds for name in each):
            values = [each.get(name) for each in foregrounds]
            columns.append(_column(f"foreground: {name}", values, words.score, higher=True, score=True))
        if len(classes) <= MOST_CLASSES:
            for name in classes:
                values = [number(mapping(run.summary.get("iou")).get(name)) for run in runs]
                columns.append(_column(name, values, words.score, higher=True, score=True))
    columns += [
        _column("best val mean IoU", best_val, words.score, higher=True, score=True),
        _column("epochs", [float(len(run.records)) or number(run.summary.get("epochs")) for run in runs], words.whole),
        _column("time", [_seconds(run) for run in runs], words.duration, higher=False),
        _column("images/s", of("images_per_s"), words.rate, higher=True),
        _column("waiting", of("data_wait_pct"), words.percent, higher=False),
        _column("peak memory", of("peak_memory_mb"), words.memory, higher=False),
        _column("parameters", of("parameters"), words.compact),
    ]
    return [column for column in columns if set(column.values) != {words.DASH}]


def _column(
    title: str,
    values: Sequence[float | None],
    wording: Callable[[Any], str],
    *,
    higher: bool | None = None,
    score: bool = False,
) -> Column:
    texts = tuple(wording(value) for value in values)
    known = [value for value in values if value is not None]
    best: frozenset[int] = frozenset()
    # What reads the same is equally good.
    if higher is not None and len(set(texts) - {words.DASH}) > 1:
        shown = wording(max(known) if higher else min(known))
        best = frozenset(i for i, text in enumerate(texts) if text == shown)
    return Column(title=title, values=texts, best=best, score=score)


def _seconds(run: _Run) -> float | None:
    known = [number(record.get("seconds")) for record in run.records]
    return number(run.summary.get("seconds")) or sum(v for v in known if v is not None) or None


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[str, ...]]]:
    keys = [key for key in dict.fromkeys(itertools.chain(*configs)) if key not in _OWN]
    rows = [(key, tuple(_shown(config.get(key)) for config in configs)) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _shown(value: Any) -> str:
    if value is None or value == "":
        return words.DASH
    return str(value).lower() if isinstance(value, bool) else str(value)


def _notes(runs: Sequence[_Run], names: Sequence[str], classes: list[str] | None) -> list[str]:
    notes = []
    unfinished = [name for name, run in zip(names, runs, strict=True) if not run.summary]
    if unfinished:
        notes.append(f"Not finished, so no scores: {', '.join(unfinished)}.")
    if classes is None:
        notes.append("The runs have different classes: their mean IoUs are not comparable.")
    finished = [run.summary for run in runs if run.summary]
    if len({str(summary.get("data_digest")) for summary in finished}) > 1:
        notes.append("The runs were trained and scored on different shards.")
    if len(splits := {str(summary.get("split")) for summary in finished}) > 1:
        notes.append(f"The runs were scored on different splits: {', '.join(sorted(splits))}.")
    return notes


def _charts(runs: Sequence[_Run], names: Sequence[str], classes: list[str] | None) -> list[Chart]:
    epochs, minutes = [epochs_of(run.records) for run in runs], [_minutes(run) for run in runs]
    wanted: list[tuple[str, list[list[float]], Callable[[Mapping[str, Any]], Any]]] = [
        ("Validation mean IoU, by epoch", epochs, lambda record: _val(record).get("mean_iou")),
        ("Validation mean IoU, by minute", minutes, lambda record: _val(record).get("mean_iou")),
        ("Training loss", epochs, lambda record: record.get("train_loss")),
        ("Validation loss", epochs, lambda record: _val(record).get("loss")),
    ]
    large = len(wanted)
    each = classes if classes is not None and len(classes) <= MOST_CLASSES else []
    wanted += [(f"Validation IoU: {name}", epochs, functools.partial(_iou, name)) for name in each]
    drawn = []
    for n, (title, places, value) in enumerate(wanted):
        lines = [
            line(at, name, list(map(value, run.records)), f"--class-{i}", dashes=DASHES[i // 10 % len(DASHES)])
            for i, (at, name, run) in enumerate(zip(places, names, runs, strict=True))
        ]
        known = [one for one in lines if one.last and math.isfinite(one.at[-1])]
        if known:
            drawn.append(chart(title, known, f"c{n}", small=n >= large, whole=places is epochs))
    return drawn


def _iou(name: str, record: Mapping[str, Any]) -> Any:
    return mapping(_val(record).get("iou")).get(name)


def _minutes(run: _Run) -> list[float]:
    seconds = [number(record.get("seconds")) for record in run.records]
    return [total / 60 for total in itertools.accumulate(math.nan if v is None else v for v in seconds)]
