"""Result files as one page and one Markdown table, made of nothing but what the files hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.harness import by_chart, number, remarks
from petseg.errors import PetsegError
from petseg.system import write_atomic

PAGE, TABLE = "report.html", "table.md"

TITLES = {
    "loader": ("Loading", "Samples a second: decoded, resized and batched, in a shuffled order."),
    "step": ("The training step", "Compute alone, on batches that lie on the device already."),
    "train": ("Training end to end", "Loader and step together, against what each can do alone."),
    "pack": ("Packing", "From source files to shards, wall time of the whole command."),
    "learn": ("Learning", "Scores of the test split against seconds of training; evaluation is not counted."),
    "learn-camvid": ("Learning streets", "Mean IoU over CamVid's 11 classes, on whole images of val."),
    "remote": ("Shards of a store", "A server on loopback, which shares the cores, beside the disk."),
    "scale": ("Scale", "What a data set costs before its first sample is read."),
}

RATIOS_ARE = {
    "learn": "Our mean IoU at shares of T, the notebook's time; and the plain loop's seconds to 0.60 over ours",
    "learn-camvid": "Our mean IoU, and by how much it is above the plain loop's",
    "remote": "A store's rates over those of the disk or of the faster peer; bytes fetched over those of the set",
    "gpu": "The figures to reach",
}

VIEW = (640, 260)
"""Width and height of a line chart, in its own units; its right third is for names."""

_COLOURS = {
    "petseg": "--series-1",
    "library": "--series-2",
    "notebook": "--series-4",
    "part": "--series-3",
    "ceiling": "--other",
}
_KINDS = {
    "petseg": "petseg",
    "library": "other libraries",
    "notebook": "the notebook",
    "part": "a part alone",
    "ceiling": "a ceiling: work without a pipeline",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One row of a chart; lengths in percent of the chart's width."""

    name: str
    kind: str
    figure: str
    """The median as text; empty where there is none."""
    length: float
    low: float
    high: float
    """Ends of the spread, smallest and largest repeat."""
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One contender against the number of threads or seconds, in the units of `VIEW`."""

    name: str
    kind: str
    points: tuple[tuple[float, float], ...]
    label_y: float
    """Where its name stands, clear of the others' names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """The rows that are compared with each other."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    conclusion: str
    lines: tuple[Line, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    """Numbers of threads or seconds: where they stand, and as text."""
    axis: str = ""
    """What the ticks count."""


def write_pages(results: Path) -> tuple[Path, Path]:
    """Write the page and the table of all result files in a folder.

    Returns:
        Their paths.

    Raises:
        PetsegError: no result file, or one that is damaged.
    """
    found = read_results(results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(__file__).parents[1] / "petseg" / "report"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections: list[dict[str, Any]] = [
        {
            "bench": "ceilings",
            "title": "Share of the ceiling",
            "lead": "How near each stage comes to the same work without a pipeline.",
            "charts": [shares] if (shares := ceilings(found)) else [],
            "ratios": [],
            "missing": [],
            "env": {},
        },
        *(
            {
                "bench": bench,
                "title": _title(bench)[0],
                "lead": _title(bench)[1],
                "ratios_are": ratios_are(bench),
                "charts": charts(result["rows"]),
                "ratios": [(name, value) for name, value in result["ratios"].items() if value is not None],
                "missing": [name for name, value in result["ratios"].items() if value is None],
                "env": result["env"],
            }
            for bench, result in found.items()
        ),
    ]
    sections = [section for section in sections if section["charts"]]
    page = environment.get_template("report.html.j2").render(
        sections=sections, view=VIEW, colours=_COLOURS, kinds=_KINDS, env=next(iter(found.values()))["env"]
    )
    paths = results / PAGE, results / TABLE
    write_atomic(paths[0], page.encode())
    write_atomic(paths[1], markdown(found).encode())
    return paths


def read_results(results: Path) -> dict[str, dict[str, Any]]:
    """All result files of a folder by benchmark, in the order of `TITLES`.

    Raises:
        PetsegError: none, or a damaged one.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob("*.json")):
        try:
            result = json.loads(path.read_bytes())
            found[result["bench"]] = {key: result[key] for key in ("rows", "ratios", "env")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PetsegError(
                f"{path} is not a result of a benchmark ({error}): remove it, or measure again."
            ) from error
    if not found:
        raise PetsegError(f"{results} holds no result: measure first: python -m benchmarks loader --quick.")
    order = list(TITLES)
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)))


def charts(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """One chart for each value of the rows' `chart`, best first, failures last."""
    return [_chart(title, mine) for title, mine in by_chart(rows).items()]


def ceilings(found: Mapping[str, Mapping[str, Any]]) -> Chart | None:
    """The best of petseg over the best ceiling, for every chart that has both; None where none has."""
    bars = []
    for result in found.values():
        for title, rows in by_chart(result["rows"]).items():
            ours, ceiling = _best(rows, ("petseg",)), _best(rows, ("ceiling",))
            if ours is None or ceiling is None or ours["unit"] == "MB" or {"threads", "parts_of"} & ours.keys():
                continue
            share = 100 * _quotient(ours, ceiling)
            length = min(share, 100.0)
            bars.append(
                Bar(
                    name=title, kind="petseg", figure=f"{share:.0f}%", length=length, low=length, high=length,
                    note=f"{ours['name']}, of {str(ceiling['name']).removeprefix('ceiling: ')}",
                )
            )  # fmt: skip
    if not bars:
        return None
    worst = min(bars, key=lambda bar: bar.length)
    text = f"Furthest from its ceiling is {worst.name[0].lower()}{worst.name[1:]}: {worst.figure}."
    return Chart(title="Of every stage", unit="%", bars=tuple(bars), conclusion=text)


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: how petseg's best compares with the best of the others and with the ceiling."""
    ours, others, ceiling = (_best(rows, kinds) for kinds in (("petseg",), ("library", "notebook"), ("ceiling",)))
    if ours is None:
        return "Measured for the ratios alone."
    if ours.get("parts_of"):
        parts = [row for row in rows if row.get("parts_of") and row["median"] is not None]
        whole, largest = sum(row["median"] for row in parts), max(parts, key=lambda row: row["median"])
        return (
            f"A sample takes {ours['parts_of']} {number(whole)} {ours['unit']}; the largest part of it is "
            f'"{largest["name"]}", {100 * largest["median"] / whole:.0f}%.'
        )
    if ours["unit"] == "mean IoU":
        (name, score), training = _reached(ours), " of training" if "line" in ours else ""
        text = f"{name} reaches {score}{training}"
        return text + ("; the best of the others ({}) {}.".format(*_reached(others)) if others else ".")
    if "threads" in ours:
        one = next((row for row in rows if row["threads"] == 1 and row["line"] == ours["line"]), ours)
        return (
            f"{ours['line']} makes {number(ours['median'])} {ours['unit']} with {ours['threads']} threads, "
            f"{_times(ours, one)} what it makes with one."
        )
    lower = _lower_is_better(ours)
    text = f"{ours['name']} {'takes' if lower else 'makes'} {number(ours['median'])} {ours['unit']}"
    if others is not None:
        text += f", {_times(ours, others)}{' as fast as' if lower else ''} the fastest other ({others['name']})"
    if ceiling is not None:
        text += (
            f", {100 * _quotient(ours, ceiling):.0f}% of the ceiling ({str(ceiling['name']).removeprefix('ceiling: ')})"
        )
    return text + "."


def _reached(row: Mapping[str, Any]) -> tuple[str, str]:
    """Who scores what, and when, where there is a curve."""
    if "line" not in row:
        return row["name"], f"{row['median']:.3f}"
    return row["line"], f"{row['median']:.3f} in {row['seconds']:.0f} s"


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The same figures as Markdown tables, with the machine and the command that made them."""
    lines = []
    for bench, result in found.items():
        env = result["env"]
        lines += [
            f"## {_title(bench)[0]}",
            "",
            f"`{env['command']}` on {env['cpu']}, {env['cores']} cores.",
            "",
        ]
        for title, rows in by_chart(result["rows"]).items():
            lines += [
                f"### {title}",
                "",
                conclusion(rows),
                "",
                f"| | {rows[0]['unit']} | spread | |",
                "|---|---:|---:|---|",
            ]
            for row in _ordered(rows):
                figure = f"{number(row['median'])}" if row["median"] is not None else "-"
                spread = f"{number(row['min'])} to {number(row['max'])}" if row["median"] is not None else ""
                lines.append(f"| {row['name']} | {figure} | {spread} | {remarks(row)} |")
            lines.append("")
        known = {name: value for name, value in result["ratios"].items() if value is not None}
        if known:
            lines += [f"| {ratios_are(bench)} | |", "|---|---:|"]
            lines += [f"| `{name}` | {value:.2f} |" for name, value in known.items()] + [""]
    return "\n".join(lines)


def ratios_are(bench: str) -> str:
    """What a benchmark's ratios are, in words."""
    return RATIOS_ARE.get(bench) or RATIOS_ARE.get(bench.partition("-")[0], "Ours over theirs")


def _title(bench: str) -> tuple[str, str]:
    if bench.startswith("gpu-"):
        return (
            f"On one GPU: {bench.removeprefix('gpu-')}",
            "Loaders, steps and runs of gpu_suite.py, on the GPU it names.",
        )
    return TITLES.get(bench, (bench, ""))


def _chart(title: str, rows: Sequence[Mapping[str, Any]]) -> Chart:
    longest = max((float(row["max"]) for row in rows if row["max"]), default=1.0)
    bars = []
    for row in _ordered(rows):
        middle, low, high = (100 * float(row[key] or 0) / longest for key in ("median", "min", "max"))
        bars.append(
            Bar(
                name=str(row["name"]), kind=str(row["kind"]), length=middle, low=low, high=high, note=remarks(row),
                figure=number(row["median"]) if row["median"] is not None else "",
            )
        )  # fmt: skip
    chart = Chart(title=title, unit=str(rows[0]["unit"]), bars=tuple(bars), conclusion=conclusion(rows))
    axis = next((name for name in ("threads", "seconds") if {name, "line"} <= rows[0].keys()), "")
    return replace(chart, **_lines(rows, axis)) if axis else chart


def _lines(rows: Sequence[Mapping[str, Any]], axis: str) -> dict[str, Any]:
    """Lines and ticks of a chart against threads or seconds; both axes begin at 0."""
    known = [row for row in rows if row["median"] is not None]
    if not known:
        return {}
    width, height = VIEW[0] * 0.66, VIEW[1] - 30
    most, highest = max(row[axis] for row in known), 1.05 * max(row["median"] for row in known)

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        return round(width * row[axis] / most, 1), round(height * (1 - row["median"] / highest), 1)

    lines = []
    for name in dict.fromkeys(str(row["line"]) for row in known):
        mine = sorted((row for row in known if row["line"] == name), key=lambda row: row[axis])
        points = tuple(map(place, mine))
        lines.append(Line(name=name, kind=str(mine[0]["kind"]), points=points, label_y=points[-1][1]))
    lines.sort(key=lambda line: line.label_y)
    clear, below = [], -20.0
    for line in lines:
        below = max(line.label_y, below + 20)
        clear.append(replace(line, label_y=below))
    counts = sorted({row[axis] for row in known}) if axis == "threads" else _round_steps(most)
    return {"lines": tuple(clear), "ticks": tuple((round(width * n / most, 1), f"{n:g}") for n in counts), "axis": axis}


def _round_steps(most: float) -> list[float]:
    """Three to seven steps of 1, 2 or 5 times a power of ten, up to `most`."""
    steps = (digit * 10.0**power for power in range(-3, 9) for digit in (1, 2, 5))
    step = next(step for step in steps if most / step < 8)
    return [step * n for n in range(1, int(most / step) + 1)]


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    sign = 1 if _lower_is_better(rows[0]) else -1
    return sorted(rows, key=lambda row: (row["median"] is None, sign * (row["median"] or 0)))


def _best(rows: Sequence[Mapping[str, Any]], kinds: tuple[str, ...]) -> Mapping[str, Any] | None:
    fit = [row for row in _ordered(rows) if row["kind"] in kinds and row["median"] is not None]
    return fit[0] if fit else None


def _quotient(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """How much better ours is; above 1 it is."""
    mine, other = float(ours["median"]), float(theirs["median"])
    if not mine or not other:
        return 1.0 if mine == other else float("inf")
    return other / mine if _lower_is_better(ours) else mine / other


def _times(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    value = _quotient(ours, theirs)
    return f"{value:.1f} times" if value >= 10 else f"{value:.2f} times"


def _lower_is_better(row: Mapping[str, Any]) -> bool:
    return re.fullmatch(r"s|ms|µs|MB|times chance|share", str(row["unit"])) is not None
