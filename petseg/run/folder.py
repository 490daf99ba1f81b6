"""The run folder: the names in it, and everything that reads or writes its small files."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from petseg.config import TrainConfig
from petseg.errors import PetsegError
from petseg.system import write_atomic

RUNS = Path("runs")
"""Where runs go that were given no folder."""

CONFIG, RESOLVED, METRICS, SUMMARY = "config.toml", "resolved.toml", "metrics.jsonl", "summary.json"
REPORT = "report.html"

BEST, LAST = "best.pt", "last.pt"

STAGED = "best.pt.next"
"""A new best checkpoint, until the last one that belongs to it is written."""

_BYPRODUCT = re.compile(r"\..*\.partial-[0-9a-f]+|events\.out\.tfevents\..*")

_AGAIN = "petseg-train --resume with this --run-dir scores the run and writes it again."


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run, and the reading and writing of its small files."""

    path: Path

    @property
    def config(self) -> Path:
        """What was asked for, without a run folder: as `--config` it makes the run again."""
        return self.path / CONFIG

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / LAST

    @property
    def can_resume(self) -> bool:
        """Whether it holds a run that saved something to resume from."""
        return self.last.is_file() and self.config.is_file()

    def create(self) -> None:
        """Make the folder. Files of a run that was killed before its first checkpoint are no obstacle.

        Raises:
            PetsegError: it already holds something else, or cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = {entry.name for entry in self.path.iterdir()}
        except OSError as error:
            raise PetsegError(f"--run-dir {self.path} cannot be made ({error.strerror}): choose another.") from error
        begun = {CONFIG, RESOLVED, METRICS, STAGED} if CONFIG in names else set()
        if any(n not in begun and not _BYPRODUCT.match(n) for n in names):
            raise PetsegError(
                f"--run-dir {self.path} already holds something: choose another, or resume that run by --resume."
            )

    def forget(self) -> None:
        """Remove the folder if nothing of value was saved in it."""
        if not self.last.exists() and not (self.path / STAGED).exists():
            for name in (CONFIG, RESOLVED):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something else
                self.path.rmdir()

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the run, whole or not at all.

        Raises:
            PetsegError: the disk is full or the folder read-only.
        """
        try:
            write_atomic(self.path / name, data)
        except OSError as error:
            raise cannot_write(self.path / name, error) from error

    def write_records(self, records: list[dict[str, Any]]) -> None:
        """Write all epochs' records: a few kilobytes, and no half line is ever left behind."""
        self.write(METRICS, "".join(to_json(record) + "\n" for record in records).encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        self.write(SUMMARY, (to_json(summary, indent=1) + "\n").encode())

    def records(self) -> list[dict[str, Any]]:
        """The epochs' records; none where there is no such file.

        Raises:
            PetsegError: damaged.
        """
        path = self.path / METRICS
        if not path.is_file():
            return []
        records: list[dict[str, Any]] = []
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PetsegError(f"{path} cannot be read ({error}): give the folder of a finished run.") from error
        for n, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise PetsegError(f"{path}, line {n}, is not JSON ({error}): remove that line.") from error
            if not isinstance(record, dict):
                raise PetsegError(f"{path}, line {n}, is not an epoch's record: remove that line.")
            records.append(record)
        return records

    @property
    def is_finished(self) -> bool:
        """Whether the run reached its end and wrote a summary."""
        return (self.path / SUMMARY).exists()

    def summary(self) -> dict[str, Any]:
        """The summary of a finished run.

        Raises:
            PetsegError: it is not finished, or the file is damaged.
        """
        path = self.path / SUMMARY
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise PetsegError(
                f"{self.path} has no {SUMMARY}: finish the run first (petseg-train --resume), or give the folder of "
                "one that reached its end."
            ) from None
        except OSError as error:
            raise PetsegError(
                f"{path} cannot be read ({error.strerror}): give the folder of a finished run."
            ) from error
        except ValueError as error:
            raise PetsegError(f"{path} is not JSON ({error}): {_AGAIN}") from error
        if not isinstance(data, dict):
            raise PetsegError(f"{path} holds no summary but a {type(data).__name__}: {_AGAIN}")
        return data

    def resolved(self) -> dict[str, Any]:
        """The run's resolved options; empty if the file is missing.

        Raises:
            PetsegError: damaged.
        """
        path = self.path / RESOLVED
        if not path.is_file():
            return {}
        try:
            return tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise PetsegError(f"{path} is not TOML ({error}): put back the one that the run wrote.") from error


def cannot_write(path: Path, error: OSError) -> PetsegError:
    """The sentence for a full disk and its like."""
    return PetsegError(f"{path} could not be written ({error.strerror}): free some space, or choose another --run-dir.")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON without NaN and infinities, which no other reader takes: they become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def new_run_folder(root: Path, label: str, now: datetime | None = None) -> RunFolder:
    """A folder of its own under `root`, named by the time and `label`; not made yet."""
    stem = f"{now or datetime.now():%Y%m%d-%H%M%S}-{label}"
    path, n = root / stem, 1
    while path.exists():
        n += 1
        path = root / f"{stem}-{n}"
    return RunFolder(path)


def folder_for(config: TrainConfig) -> str:
    """The folder of a new run: as given, or a new one under `RUNS`."""
    return config.run_dir or str(new_run_folder(RUNS, f"{config.recipe}-{config.arch}".replace(":", "-")).path)


def newest_run_folder(root: Path) -> RunFolder:
    """The run under `root` whose last checkpoint is the newest.

    Raises:
        PetsegError: no run there has a checkpoint.
    """
    found = sorted(root.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise PetsegError(f"--resume: nothing to resume: no run under {root} has a {LAST}; give --run-dir.")
    return RunFolder(found[-1].parent)
