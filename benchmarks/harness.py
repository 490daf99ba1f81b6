"""Contenders as processes of their own, measured in turn; every raw figure is kept, with what it was measured on."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import selectors
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from petseg.system import available_memory, cpu_model, usable_cores, versions

if TYPE_CHECKING:  # it needs torch, which takes seconds to import
    from benchmarks.data import Reference

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"
START_SECONDS = 300.0
"""A contender has so long to load its data and to say that it is ready."""
END_SECONDS = 5.0
"""A contender has so long to end by itself."""


@dataclass(kw_only=True, slots=True)
class Row:
    """One contender's figures."""

    name: str
    unit: str
    samples: list[float] = field(default_factory=list)
    """Every repeat's figure, in the order of measuring."""
    note: str = ""
    """Why it could not run, or in what its work differs from the others'."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else is known of it: its cell, its kind, its versions."""

    def to_dict(self) -> dict[str, Any]:
        """With median, smallest and largest figure; None where there is none."""
        known = sorted(self.samples)
        return {
            **{key: value for key, value in asdict(self).items() if key != "facts"},
            "median": statistics.median(known) if known else None,
            "min": known[0] if known else None,
            "max": known[-1] if known else None,
            **self.facts,
        }


class ContenderError(Exception):
    """A contender that cannot run; the text is its reason."""


class Contender:
    """A child process that speaks the protocol of `peers/_serve.py`.

    Args:
        command: what starts it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._pending = b""
        self.ready: dict[str, Any] = {}
        """What it said when it was ready."""

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until it has loaded its data.

        Raises:
            ContenderError: it ended, or it did not answer.
        """
        self.ready = self._answer(seconds)

    def ask(self, seconds: float = START_SECONDS, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises:
            ContenderError: it ended, or it did not answer.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(command) + "\n").encode())
            self._process.stdin.flush()
        except OSError:
            raise ContenderError(self._reason()) from None
        return self._answer(seconds)

    def close(self) -> None:
        """End it, at once if it does not end by itself."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._end()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _end(self) -> None:
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(seconds):
                    raise ContenderError(f"it did not answer within {seconds:.0f} s")
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    raise ContenderError(self._reason())
                self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _reason(self) -> str:
        """The last line that it left on standard error."""
        self._end()  # one that has closed its output can still take long to end
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return (lines[-1] if lines else f"it ended with code {self._process.returncode}")[:300]


def run_children(
    rows: dict[str, Row],
    commands: Mapping[str, Sequence[str]],
    *,
    repeats: int,
    seconds: float,
    skip: int,
    least: int,
    check: Callable[[Row, Contender], str],
    progress: Callable[[str], None],
) -> None:
    """Start contenders, check their work, and measure them in turns.

    Args:
        rows: where figures go, in samples a second; by contender.
        commands: what starts each one; a row without a command stays as it is.
        repeats: windows of each.
        seconds: length of a window.
        skip: batches at the head of a window that are not clocked.
        least: batches that a window has at least.
        check: in what a contender's work differs from the others', empty where in nothing.
        progress: called with a contender's name after each of its steps.
    """
    with contextlib.ExitStack() as stack:
        # All at once: starting takes longer than measuring, and nothing is measured yet.
        started = {name: stack.enter_context(Contender(command)) for name, command in commands.items()}
        measures: dict[str, Callable[[], float]] = {}
        for name, contender in started.items():
            row = rows[name]
            try:
                contender.wait_ready()
                row.facts["versions"] = contender.ready["versions"]
                row.note = check(row, contender)
                # The window's length, by the function under test, which warms it up as well.
                warm = contender.ask(skip=skip, timed=least)
                batches = max(least, round(seconds * least / warm["seconds"]))
                measures[name] = _window(row, contender, skip, batches)
            except ContenderError as error:
                row.note = f"failed: {error}"
            progress(name)
        interleave(measures, rows, repeats, lambda: progress(""))


def check_samples(contender: Contender, reference: Reference, batches: int) -> str:
    """In what a contender's first samples differ from the reference; see `Reference.judge`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npz"
        contender.ask(check=str(path), batches=batches)
        with np.load(path) as found:
            return reference.judge(found["images"], found["codes"])


def _window(row: Row, contender: Contender, skip: int, batches: int) -> Callable[[], float]:
    def once() -> float:
        answer = contender.ask(skip=skip, timed=batches)
        for key in answer.keys() - {"seconds", "samples"}:
            row.facts.setdefault(key, []).append(answer[key])
        return float(answer["samples"] / answer["seconds"])

    return once


def interleave(
    measures: dict[str, Callable[[], float]], rows: dict[str, Row], repeats: int, progress: Callable[[], None]
) -> None:
    """Measure every contender once, then every one again, and so on: what the machine does to one, it does to all.

    Args:
        measures: measures one repeat of a contender; raises `ContenderError` where it no longer can.
        rows: where the figures go.
        repeats: how often.
        progress: called after each figure.
    """
    gone: set[str] = set()
    for _ in range(repeats):
        for name, measure in measures.items():
            if name not in gone:
                try:
                    rows[name].samples.append(measure())
                except ContenderError as error:
                    rows[name].note = f"failed: {error}"
                    gone.add(name)
            progress()


def ratio(rows: Sequence[Row], ours: Sequence[str], theirs: Sequence[str]) -> float | None:
    """The best median of `ours` over the best of `theirs`, None where either has no figure."""
    medians = {row.name: statistics.median(row.samples) for row in rows if row.samples}
    mine, others = ([medians[name] for name in names if name in medians] for names in (ours, theirs))
    return max(mine) / max(others) if mine and others else None


def peer(script: str) -> list[str]:
    """What starts a script of `peers/` in this environment."""
    return [sys.executable, str(ROOT / "peers" / script)]


def by_chart(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows, as `Row.to_dict` gives them, by the chart that they stand in."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row["chart"]), []).append(row)
    return found


def remarks(row: Mapping[str, Any]) -> str:
    """What is said of a row beside its figures."""
    return "; ".join(filter(None, (str(row.get("detail", "")), str(row["note"]))))


def number(value: float) -> str:
    """As people read it: three digits at least, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def command_line(arguments: Sequence[str]) -> str:
    """The command that measures the same again; where its result went says nothing, nor do folders of a machine."""
    kept = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    if "--out" in kept:
        at = kept.index("--out")
        del kept[at : at + 2]
    return shlex.join(["python", "-m", "benchmarks", *kept])


def environment(data_digest: str, **facts: Any) -> dict[str, Any]:
    """What a result was measured on, and how to measure it again."""
    return {
        "command": command_line(sys.argv[1:]),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gb": round(available_memory() / 1e9, 1),
        "system": platform.platform(terse=True),
        "versions": versions(),
        "data_digest": data_digest,
        **facts,
    }


def write_result(
    bench: str, rows: Sequence[Row], ratios: dict[str, float | None], env: dict[str, Any], out: Path
) -> str:
    """Write one result file; returns the line that a benchmark ends with, the same as JSON."""
    result = {"bench": bench, "rows": [row.to_dict() for row in rows], "ratios": ratios, "env": env}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{bench}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return json.dumps(result)
