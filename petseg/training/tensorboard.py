"""TensorBoard events of a run, written beside everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petseg.config import TrainConfig
from petseg.errors import OptionError
from petseg.run.folder import RunFolder
from petseg.training.reporter import Reporter


class EventWriter(Reporter):
    """Writes each epoch's numbers as TensorBoard scalars into the run's folder.

    Raises:
        PetsegError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise OptionError(
                "tensorboard",
                "TensorBoard is not installed: install petseg's extra `tensorboard`, or leave it out.",
            ) from error
        self._run: Path | None = None

    def started(self, run: RunFolder, _config: TrainConfig) -> None:
        """See `Reporter`."""
        self._run = run.path

    def epoch_ended(self, record: dict[str, Any]) -> None:
        """See `Reporter`."""
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
