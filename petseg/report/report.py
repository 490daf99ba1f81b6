"""`report.html` of a run: what its folder holds, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petseg.classes import ClassTable
from petseg.report import words
from petseg.report.curves import charts
from petseg.report.foregrounds import foregrounds_of
from petseg.report.gallery import Panel, gallery_rows, probability_colours, tile_side
from petseg.report.looks import ClassLook, class_looks
from petseg.report.page import script, write_page
from petseg.report.words import mapping, number
from petseg.run.folder import REPORT, RunFolder

_PHASES = (
    ("data", "Waiting for data"),
    ("compute", "Training steps"),
    ("evaluation", "Evaluation"),
    ("other", "Other"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One part of the run's time."""

    phase: str
    label: str
    time: str
    percent: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One row of the table of classes; None is unknown."""

    name: str
    iou: float | None
    dice: float | None = None
    accuracy: float | None = None
    precision: float | None = None
    index: int | None = None
    """Class index, whose colour is shown; None for a row that is not a class."""
    kind: str = "class"
    """`class`, `foreground`, `mean` or `baseline`."""


MOST_CONFUSED = 20
"""Classes of the largest confusion matrix that is shown."""


PAIRS = 20
"""Pairs of classes in the list that stands in for a larger matrix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """Pixels of one class that were predicted as another."""

    truth: int
    """Class index."""
    taken_for: int
    """Class index."""
    of_class: float
    """Share of the true class's pixels, 0 to 1."""
    of_errors: float
    """Share of all wrong pixels, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """One large figure at the top."""

    label: str
    value: str
    note: str = ""


def write_report(
    run_dir: Path,
    panels: Sequence[Panel],
    *,
    worst: Sequence[Panel] = (),
    classes: ClassTable | None = None,
) -> Path:
    """Write `report.html`, one file that asks for nothing else, into a run folder; whole or not at all.

    Args:
        run_dir: a finished run's folder, with `summary.json`, and `metrics.jsonl` and `resolved.toml` where there are.
        panels: images for the gallery.
        worst: the images of the split with the lowest mean IoU, from the worst on.
        classes: the run's class table, for colours and for the names of foregrounds. None goes by the summary's
            names, which for Oxford's three classes comes to the same.

    Returns:
        The path of the report.

    Raises:
        PetsegError: the run has no summary, one of its files is damaged, or the report cannot be written.
        ValueError: a panel has more classes than the class table.
    """
    run = RunFolder(run_dir)
    summary, records, config = run.summary(), run.records(), run.resolved()
    # Classes without a name get one, but never beyond a class table that is known.
    count = max((panel.classes for panel in (*panels, *worst)), default=0)
    looks = class_looks(classes, list(mapping(summary.get("iou"))), count)
    matrix = _matrix(summary, len(looks))
    judged = mapping(summary.get("verdict"))
    side = tile_side(len(panels) + len(worst))
    best = number(summary.get("best_epoch"))
    path = run_dir / REPORT
    write_page(
        path,
        "report.html.j2",
        run=run_dir.resolve().name,
        summary=summary,
        outcome=_outcome(summary, classes, looks),
        headlines=_headlines(summary, classes, looks),
        charts=charts(records, looks, best=best, baseline=number(summary.get("baseline_mean_iou"))),
        has_validation=any(mapping(record.get("val")) for record in records),
        best=best if len(records) > 1 else None,
        epochs=len(records),
        looks=looks,
        scores=_scores(summary, classes, looks),
        confusion=_shares_of(matrix) if len(matrix) <= MOST_CONFUSED else [],
        pairs=_pairs(matrix) if len(matrix) > MOST_CONFUSED else [],
        shares=_shares(mapping(summary.get("time"))),
        verdict={name: _text(judged.get(name)) for name in ("kind", "why", "option", "remark")},
        gallery=gallery_rows(panels, looks, side=side),
        worst=gallery_rows(worst, looks, side=side),
        ramp=[tuple(rgb) for rgb in probability_colours()[::32].tolist()],
        config=list(_flat(config)),
        versions=list(mapping(summary.get("versions")).items()),
        split=_text(summary.get("split"), "test"),
        number=number,
        **script("sort.js"),
    )
    return path


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def _text(value: Any, default: str = "") -> str:
    return default if value is None or value == "" else str(value)


def _outcome(summary: Mapping[str, Any], classes: ClassTable | None, looks: Sequence[ClassLook]) -> dict[str, str]:
    """The parts of the sentence at the top; an empty text leaves its part out."""
    foregrounds = [
        f"{words.score(iou)} for {names}"
        for names, iou in foregrounds_of(summary, classes, [look.name for look in looks])
        if iou is not None
    ]
    return {
        "mean_iou": words.score(summary.get("mean_iou")),
        "foreground": " and ".join(foregrounds),
        "samples": words.whole(summary["samples"]) if number(summary.get("samples")) is not None else "",
        "loader": _text(summary.get("loader")),
        "device": _text(summary.get("device")),
        "speed": words.rate(summary["images_per_s"]) if number(summary.get("images_per_s")) is not None else "",
    }


def _headlines(summary: Mapping[str, Any], classes: ClassTable | None, looks: Sequence[ClassLook]) -> list[Headline]:
    baseline = number(summary.get("baseline_mean_iou"))
    foregrounds = foregrounds_of(summary, classes, [look.name for look in looks])
    best, epochs = number(summary.get("best_epoch")), number(summary.get("epochs"))
    extras = [_text(summary.get(key)) for key in ("amp", "loader")]
    compiled = {"on": "compiled", "off": "not compiled"}.get(_text(summary.get("compile")), "")
    if isinstance(summary.get("compile"), bool):
        compiled = "compiled" if summary["compile"] else "not compiled"
    found = [
        Headline(label="Mean IoU", value=words.score(summary.get("mean_iou")),
                 note=f"a constant prediction gets {words.score(baseline)}" if baseline is not None else ""),
        *(
            Headline(label="Foreground IoU", value=words.score(iou), note=names) for names, iou in foregrounds[:2]
        ),
        Headline(label="Pixel accuracy", value=words.score(summary.get("pixel_accuracy")),
                 note=f"mean Dice {words.score(summary.get('dice'))}"),
        Headline(label="Throughput", value=words.rate(summary.get("images_per_s")),
                 note="images/s in training"),
        Headline(label="Time", value=words.duration(summary.get("seconds")),
                 note=", ".join(part for part in (
                     f"{words.whole(epochs)} epoch{'' if epochs == 1 else 's'}" if epochs is not None else "",
                     f"best was {words.whole(best)}" if best and epochs != 1 else "",
                 ) if part)),
        Headline(label="Peak memory", value=words.memory(summary.get("peak_memory_mb")),
                 note=_text(summary.get("device"))),
        Headline(label="Parameters", value=words.compact(summary.get("parameters")),
                 note=", ".join(part for part in (f"amp {extras[0]}" if extras[0] else "", compiled) if part)),
    ]  # fmt: skip
    return [tile for tile in found if tile.value != words.DASH]


def _scores(summary: Mapping[str, Any], classes: ClassTable | None, looks: Sequence[ClassLook]) -> list[Score]:
    iou, dice, accuracy, precision = (
        mapping(summary.get(key)) for key in ("iou", "dice_per_class", "class_accuracy", "precision")
    )
    rows = [
        Score(
            name=look.name,
            index=i,
            iou=number(iou.get(look.name)),
            dice=number(dice.get(look.name)),
            accuracy=number(accuracy.get(look.name)),
            precision=number(precision.get(look.name)),
        )
        for i, look in enumerate(looks)
    ]
    rows.append(
        Score(
            name="Mean of the classes",
            kind="mean",
            iou=number(summary.get("mean_iou")),
            dice=number(summary.get("dice")),
            accuracy=_mean([row.accuracy for row in rows]),
            precision=_mean([row.precision for row in rows]),
        )
    )
    rows += [
        Score(name=f"Foreground: {names}", kind="foreground", iou=value)
        for names, value in foregrounds_of(summary, classes, [look.name for look in looks])
    ]
    baseline = number(summary.get("baseline_mean_iou"))
    if baseline is not None:
        rows.append(Score(name="Baseline: the commonest class everywhere", kind="baseline", iou=baseline))
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _matrix(summary: Mapping[str, Any], classes: int) -> list[list[float]]:
    """Pixels by [true, predicted] class; empty where they are not known."""
    matrix = summary.get("confusion")
    if not isinstance(matrix, list) or len(matrix) != classes:
        return []
    rows = [[number(value) or 0.0 for value in row] for row in matrix if isinstance(row, list)]
    return rows if len(rows) == classes and all(len(row) == classes for row in rows) else []


def _shares_of(matrix: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """Shares of each true class's pixels by their predicted class, 0 to 1."""
    return [[value / total if total else None for value in row] for row in matrix for total in [sum(row)]]


def _pairs(matrix: Sequence[Sequence[float]]) -> list[Confusion]:
    """The pairs of classes between which most pixels were mistaken."""
    wrong = [(row[k], i, k) for i, row in enumerate(matrix) for k in range(len(row)) if k != i and row[k]]
    every = sum(pixels for pixels, _, _ in wrong)
    return [
        Confusion(truth=i, taken_for=k, of_class=pixels / sum(matrix[i]), of_errors=pixels / every)
        for pixels, i, k in sorted(wrong, key=lambda each: (-each[0], each[1:]))[:PAIRS]
    ]


def _shares(time: Mapping[str, Any]) -> list[Share]:
    known = [(phase, label, max(0.0, number(time.get(phase)) or 0.0)) for phase, label in _PHASES]
    total = sum(seconds for _, _, seconds in known)
    if not total:
        return []
    return [
        Share(phase=phase, label=label, time=words.duration(seconds), percent=round(100 * seconds / total, 3))
        for phase, label, seconds in known
    ]
