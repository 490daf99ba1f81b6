"""TensorBoard events of a run, written beside everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petseg.errors import PetsegError
from petseg.training.trainer import Reporter


class EventWriter:
    """A reporter that writes each epoch's numbers as TensorBoard scalars too.

    Args:
        screen: the reporter that shows them.
        run: the run's folder, which need not exist yet.

    Raises:
        PetsegError: TensorBoard is not installed.
    """

    def __init__(self, screen: Reporter, run: Path) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise PetsegError(
                "--tensorboard: TensorBoard is not installed: install petseg's extra `tensorboard`, or leave it out."
            ) from error
        self._screen = screen
        self._run = run

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self._screen.note(text)

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """See `Reporter`."""
        self._screen.epoch_started(epoch, epochs, steps)

    def step(self, images_per_s: float, data_wait_pct: float, memory_mb: float) -> None:
        """See `Reporter`."""
        self._screen.step(images_per_s, data_wait_pct, memory_mb)

    def epoch_ended(self, record: dict[str, Any]) -> None:
        """See `Reporter`."""
        self._screen.epoch_ended(record)
        from torch.utils.tensorboard import SummaryWriter

        # Opened and closed each epoch: events of a killed run are whole, and a resumed run adds to them.
        with SummaryWriter(str(self._run)) as writer:
            for name, value in _scalars(record):
                writer.add_scalar(name, value, record["epoch"])


def _scalars(record: dict[str, Any]) -> list[tuple[str, float]]:
    found = [(f"train/{name.removeprefix('train_')}", record[name]) for name in ("train_loss", "lr")]
    found += [(f"speed/{name}", record[name]) for name in ("images_per_s", "data_wait_pct", "memory_mb")]
    for name, value in (record["val"] or {}).items():
        if isinstance(value, int | float):
            found.append((f"val/{name}", value))
        elif isinstance(value, dict):
            found += [(f"val/{name}/{key}", v) for key, v in value.items() if v is not None]
    return found
