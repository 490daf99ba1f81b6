"""Terminal and notebook output of a run."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from petseg.training.reporter import Reporter

if TYPE_CHECKING:
    from petseg.config import TrainConfig
    from petseg.run.folder import RunFolder

MOST_CLASSES, LOWEST = 8, 3
"""Classes that fit into an epoch's line; of more, so many of the lowest stand there."""


def in_notebook() -> bool:
    """Whether this is a notebook's kernel: what is printed is seen below a cell."""
    ask = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return hasattr(ask() if ask else None, "kernel")


class ConsoleReporter(Reporter):
    """For the terminal or a notebook: one bar that is filled once an epoch, one line an epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            # rich draws bars in a notebook by ipywidgets, and says on every change that they are missing.
            disable=console.is_jupyter and importlib.util.find_spec("ipywidgets") is None,
        )
        self._task: TaskID | None = None
        self._epochs = 0
        self.run: RunFolder | None = None
        """The run's folder, once it has one."""

    def __enter__(self) -> ConsoleReporter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def started(self, run: RunFolder, _config: TrainConfig) -> None:
        """Record the run's folder."""
        self.run = run

    def note(self, text: str) -> None:
        """Print one sentence."""
        self._console.print(escape(text))

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Restart the bar."""
        self._epochs = epochs
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(f"epoch {epoch}" + (f"/{epochs}" if epochs else ""), total=steps, speed="")

    def step(self, images_per_s: float, data_wait_pct: float, memory_mb: float) -> None:
        """Advance the bar."""
        if self._task is not None:
            speed = f"{images_per_s:,.0f} images/s, {data_wait_pct:.0f}% waiting, {memory_mb:,.0f} MB"
            self._bar.update(self._task, advance=1, speed=speed)

    def epoch_ended(self, record: dict[str, Any]) -> None:
        """Print the epoch's line."""
        val, of = record["val"], f"/{self._epochs}" if self._epochs else ""
        scores = ""
        if val:
            scores = f"  val mean IoU [bold]{show(val['mean_iou'])}[/] ({classes_line(val['iou'])})"
        self._console.print(
            f"epoch {record['epoch']:>{len(str(self._epochs))}}{of}  loss {record['train_loss']:.3f}"
            f"{scores}  "
            f"{record['images_per_s']:,.0f} images/s, {record['data_wait_pct']:.0f}% waiting, "
            f"{record['memory_mb']:,.0f} MB  {record['seconds']:.1f} s"
        )


def show(value: float | None) -> str:
    """A score to three places, or `n/a`."""
    return "n/a" if value is None else f"{value:.3f}"


def classes_line(iou: dict[str, float | None]) -> str:
    """`pet 0.812, background 0.931`; of many classes the lowest."""
    shown, what = list(iou.items()), ""
    if len(shown) > MOST_CLASSES:
        known = [(value, name) for name, value in shown if value is not None]
        shown, what = [(name, value) for value, name in sorted(known)[:LOWEST]], "lowest: "
    return escape(what + ", ".join(f"{name} {show(value)}" for name, value in shown))
