"""What a run folder holds, read for reports."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petseg.classes import ClassTable
from petseg.errors import PetsegError
from petseg.report.words import mapping, number

_AGAIN = "petseg-train --resume with this --run-dir scores the run and writes it again."


def read_summary(path: Path) -> Mapping[str, Any]:
    """What a finished run came to.

    Raises:
        PetsegError: no such file, or damaged.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PetsegError(
            f"{path.parent} has no {path.name}: finish the run first (petseg-train --resume), then report on it."
        ) from None
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror}): give the folder of a finished run.") from error
    except ValueError as error:
        raise PetsegError(f"{path} is not JSON ({error}): {_AGAIN}") from error
    if not isinstance(data, dict):
        raise PetsegError(f"{path} holds no summary but a {type(data).__name__}: {_AGAIN}")
    return data


def read_records(path: Path) -> list[Mapping[str, Any]]:
    """The epochs' records; none where there is no such file.

    Raises:
        PetsegError: damaged.
    """
    if not path.is_file():
        return []
    records: list[Mapping[str, Any]] = []
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
            raise PetsegError(f"{path}, line {n}, is no epoch's record: remove that line.")
        records.append(record)
    return records


def read_config(run: Path) -> Mapping[str, Any]:
    """What a run's options came to; empty where it does not say.

    Raises:
        PetsegError: damaged.
    """
    path = run / "resolved.toml"
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PetsegError(f"{path} is not TOML ({error}): put back the one that the run wrote.") from error


def foregrounds_of(
    summary: Mapping[str, Any], classes: ClassTable | None, names: Sequence[str]
) -> list[tuple[str, float | None]]:
    """(names of its classes, IoU) of every foreground."""
    # Where neither a class table nor the summary has the codes, they are taken for Oxford's, which count from 1.
    written = summary.get("codes")
    codes = classes.codes if classes else written if isinstance(written, list) else range(1, len(names) + 1)
    named = {str(code): name for code, name in zip(codes, names, strict=False)}
    return [
        (" or ".join(named.get(code, code) for code in re.findall(r"\d+", group)) or group, number(iou))
        for group, iou in mapping(summary.get("foreground_iou")).items()
    ]
