"""The run folder: what is in it, and how it is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from petseg.errors import PetsegError
from petseg.inference.trained import LAST
from petseg.system import write_atomic

CONFIG, METRICS, SUMMARY = "config.toml", "metrics.jsonl", "summary.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run and the writing of its small files."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, as `--config` takes it."""
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        """One JSON line an epoch."""
        return self.path / METRICS

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / LAST

    def create(self) -> None:
        """Make the folder.

        Raises:
            PetsegError: it already holds something, or cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
        except OSError as error:
            raise PetsegError(f"--run-dir {self.path} cannot be made ({error.strerror}): choose another.") from error
        if occupied:
            raise PetsegError(
                f"--run-dir {self.path} already holds something: choose another, or go on with that run by --resume."
            )

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the run, whole or not at all.

        Raises:
            PetsegError: the disk is full or the folder read-only.
        """
        try:
            write_atomic(self.path / name, data)
        except OSError as error:
            raise PetsegError(
                f"{self.path / name} could not be written ({error.strerror}): free some space, or choose another "
                "--run-dir."
            ) from error

    def records(self) -> list[dict[str, Any]]:
        """The epochs' records so far."""
        if not self.metrics.is_file():
            return []
        return [json.loads(line) for line in self.metrics.read_text("utf-8").splitlines() if line]

    def write_records(self, records: list[dict[str, Any]]) -> None:
        """Write all epochs' records: a few kilobytes, and no half line is ever left behind."""
        self.write(METRICS, "".join(json.dumps(record) + "\n" for record in records).encode())


def new_run_folder(root: Path, label: str, now: datetime | None = None) -> RunFolder:
    """A folder of its own under `root`, named by the time and `label`; not made yet."""
    stem = f"{now or datetime.now():%Y%m%d-%H%M%S}-{label}"
    path, n = root / stem, 1
    while path.exists():
        n += 1
        path = root / f"{stem}-{n}"
    return RunFolder(path)


def newest_run_folder(root: Path) -> RunFolder:
    """The run under `root` whose last checkpoint is the newest.

    Raises:
        PetsegError: no run there has a checkpoint.
    """
    found = sorted(root.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise PetsegError(f"--resume: nothing to resume: no run under {root} has a {LAST}; give --run-dir.")
    return RunFolder(found[-1].parent)
