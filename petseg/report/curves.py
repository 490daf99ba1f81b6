"""Charts over the epochs, as SVG that takes its colours from the page, so that they follow its light or dark."""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petseg.report.looks import ClassLook
from petseg.report.words import mapping, number, percent, rate, score

MAX_CLASS_LINES = 6
"""Class lines in the IoU chart; with more classes, those that came out worst."""

DASHES = ((), (6.0, 2.0), (2.0, 1.6), (7.0, 2.0, 1.6, 2.0), (4.0, 1.6), (1.2, 1.2))
_MARKED = 25  # Up to so many epochs each gets a dot, so that a single one or one between gaps is seen.


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    values: tuple[float, ...]
    """One an epoch; NaN where unknown."""
    at: tuple[float, ...]
    """Where along the chart each of them stands: the epoch, or the minutes of training until then."""
    colour: str
    """The style sheet's variable, such as `--series-1`."""
    last: str
    """The last known value, in words."""
    dashes: tuple[float, ...] = ()
    """Lengths on and off in points; empty for a whole line."""
    width: float = 1.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One chart, ready for the page."""

    title: str
    alt: str
    lines: tuple[Line, ...]
    svg: str
    small: bool
    note: str = ""


def charts(
    records: Sequence[Mapping[str, Any]], looks: Sequence[ClassLook], *, best: float | None, baseline: float | None
) -> list[Chart]:
    """The run's charts: loss, IoU, throughput, data wait, learning rate. One without a value is left out.

    Args:
        records: the lines of metrics.jsonl.
        looks: names and colours of the classes.
        best: epoch whose weights were kept, marked in the charts of quality.
        baseline: mean IoU of a constant prediction, drawn as a horizontal line.
    """
    if not records:
        return []
    epochs = epochs_of(records)
    _line = functools.partial(line, epochs)
    vals = [mapping(record.get("val")) for record in records]
    loss = _known(
        _line("train", [r.get("train_loss") for r in records], "--series-1"),
        _line("validation", [v.get("loss") for v in vals], "--series-2"),
    )
    each = _known(
        *(
            _line(look.name, [mapping(v.get("iou")).get(look.name) for v in vals], f"--class-{i}",
                  dashes=DASHES[i % len(DASHES)], width=1.5)
            for i, look in enumerate(looks)
        )
    )  # fmt: skip
    note = ""
    if len(each) > MAX_CLASS_LINES:
        note = f"{MAX_CLASS_LINES} of {len(each)} classes are drawn, evenly spread from the lowest to the highest."
        ranked = sorted(each, key=lambda line: _last(line.values))
        each = [ranked[round(i * (len(ranked) - 1) / (MAX_CLASS_LINES - 1))] for i in range(MAX_CLASS_LINES)]
    iou = _known(_line("mean", [v.get("mean_iou") for v in vals], "--ink", width=2.6)) + each
    speed = _known(_line("images/s", [r.get("images_per_s") for r in records], "--series-3", words=rate))
    wait = _known(_line("of training time", [r.get("data_wait_pct") for r in records], "--series-1", words=percent))
    pace = _known(
        _line("at the end of the epoch", [r.get("lr") for r in records], "--series-4", words=lambda v: f"{v:.2g}")
    )
    wanted = [
        ("Loss", loss, False, {"best": best}, ""),
        ("Validation IoU", iou, False, {"best": best, "top": 1.0, "level": baseline}, note),
        ("Throughput", speed, True, {}, ""),
        ("Waiting for data", wait, True, {"unit": "%"}, ""),
        ("Learning rate", pace, True, {}, ""),
    ]
    return [
        chart(title, lines, f"c{n}", small=small, note=note, **options)  # type: ignore[arg-type]
        for n, (title, lines, small, options, note) in enumerate(wanted)
        if lines
    ]


def chart(
    title: str, lines: Sequence[Line], prefix: str, *, small: bool = False, note: str = "", **drawn: Any
) -> Chart:
    """A chart of lines.

    Args:
        title: what they show.
        lines: at least one, each with a known value.
        prefix: of all ids in it, which no other chart of the page has.
        small: of two thirds of the size.
        note: a sentence below.
        drawn: as for `_draw`.
    """
    epochs = max(len(line.values) for line in lines)
    return Chart(
        title=title,
        alt=f"{title} over {epochs} epoch{'s' if epochs > 1 else ''}: "
        + ", ".join(f"{line.name} {line.last}" for line in lines),
        lines=tuple(lines),
        svg=_draw(lines, prefix=prefix, small=small, **drawn),
        small=small,
        note=note,
    )


def epochs_of(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """The numbers of the epochs that records are of."""
    return [number(record.get("epoch")) or i + 1.0 for i, record in enumerate(records)]


def line(
    at: Sequence[float],
    name: str,
    values: Sequence[Any],
    colour: str,
    *,
    words: Any = score,
    dashes: tuple[float, ...] = (),
    width: float = 1.8,
) -> Line:
    """A line of a chart; values that are not finite numbers are unknown."""
    plain = tuple(math.nan if (v := number(value)) is None else v for value in values)
    last = _last(plain)
    return Line(
        name=name,
        values=plain,
        at=tuple(at),
        colour=colour,
        dashes=dashes,
        width=width,
        last="" if math.isnan(last) else words(last),
    )


def _known(*lines: Line) -> list[Line]:
    return [line for line in lines if line.last]


def _last(values: Sequence[float]) -> float:
    return next((v for v in reversed(values) if not math.isnan(v)), math.nan)


def _draw(
    lines: Sequence[Line],
    *,
    prefix: str,
    small: bool,
    best: float | None = None,
    top: float | None = None,
    level: float | None = None,
    unit: str = "",
    whole: bool = True,
) -> str:
    """One chart as an `<svg>` element without text of the user's: names stand in the page, escaped.

    Args:
        lines: at least one, each with a known value.
        prefix: of all ids in it, which no other chart of the page has.
        small: of two thirds of the size, and a single line's area filled below.
        best: where an upright line stands.
        top: end of the scale; None for the first grid line above the highest value.
        level: where a level line lies.
        unit: after the numbers of the scale.
        whole: only whole numbers stand along the chart, as for epochs.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # Colours that stand for the style sheet's variables until the drawing is done.
    stand_ins: dict[str, str] = {}

    def stand_in(variable: str) -> str:
        return stand_ins.setdefault(variable, f"#0a0b{len(stand_ins) + 1:02x}")

    first, last = min(min(line.at) for line in lines), max(max(line.at) for line in lines)
    most = max(len(line.at) for line in lines)
    width, height = (300, 150) if small else (440, 250)
    # Text stays text (the page's own font, scalable by its style sheet), and equal input gives equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "petseg", "path.simplify": False}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        canvas = FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        left, below = 46 / width, 26 / height
        axes = figure.add_axes((left, below, 1 - left - 10 / width, 1 - below - 8 / height))
        axes.patch.set_visible(False)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(stand_in("--rule"))
        axes.grid(axis="y", color=stand_in("--rule"), linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=5, labelsize=10.5, labelcolor=stand_in("--muted"))
        if level is not None:
            axes.axhline(level, color=stand_in("--muted"), linewidth=1, dashes=(2, 3))
        if best is not None and first <= best <= last and most > 1:
            axes.axvline(best, color=stand_in("--muted"), linewidth=1, dashes=(2, 3))
        for line in lines:
            (drawn,) = axes.plot(
                line.at,
                line.values,
                color=stand_in(line.colour),
                linewidth=line.width,
                marker="o" if len(line.at) <= _MARKED else None,
                markersize=line.width + (5 if len(line.at) == 1 else 1.6),
                markeredgewidth=0,
                solid_capstyle="round",
                clip_on=False,
            )
            if line.dashes:
                drawn.set_dashes(line.dashes)
        if small and len(lines) == 1:
            axes.fill_between(lines[0].at, lines[0].values, 0, color=stand_in(lines[0].colour), alpha=0.12, linewidth=0)
        spare = 0.5 if first == last else 0.0
        axes.set_xlim(first - spare, last + spare)
        known = [v for line in lines for v in line.values if not math.isnan(v)]
        lowest, highest = min(0.0, *known), max(known)
        steps = MaxNLocator(3 if small else 5, steps=[1, 2, 2.5, 5, 10])
        if top is None:
            # Up to the first grid line above the highest value, so that none ends in the open.
            ticks = steps.tick_values(lowest, max(highest, 0.0) or 1.0)
            top = float(next((tick for tick in ticks if tick >= highest and tick > 0), ticks[-1]))
        axes.set_ylim(lowest, top)
        axes.xaxis.set_major_locator(MaxNLocator(4 if small else 8, integer=whole, min_n_ticks=1))
        axes.yaxis.set_major_locator(steps)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}{unit}" if v < 1e6 else f"{v:.1e}"))
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))  # type: ignore[no-untyped-call]
    return _for_page(buffer.getvalue(), prefix, stand_ins)


def _for_page(svg: str, prefix: str, stand_ins: Mapping[str, str]) -> str:
    """The `<svg>` element alone, with ids of its own and the page's colours."""
    svg = svg[svg.index("<svg") :].strip()
    # matplotlib's style sheet speaks of `*`, which inside a page would mean every element of it.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = (
        re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    )
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for variable, colour in stand_ins.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
