"""The foregrounds of a summary, by the names of their classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from petseg.classes import ClassTable
from petseg.report.words import mapping, number


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
