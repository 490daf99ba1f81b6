"""Numbers formatted for reading. What is unknown (None, NaN, another type) reads as a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DASH = "–"


def number(value: Any) -> float | None:
    """`value` as a finite float, or None: JSON may hold null, NaN or a text where a number is meant."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def score(value: Any) -> str:
    """A metric from 0 to 1: `0.842`."""
    known = number(value)
    return DASH if known is None else f"{known:.3f}"


def percent(value: Any) -> str:
    """A percentage: `3.2%`, and `12%` from ten on."""
    known = number(value)
    if known is None:
        return DASH
    return f"{known:.0f}%" if known >= 9.95 else f"{known:.1f}%"


def rate(value: Any) -> str:
    """Images a second: `85.3` or `3,120`."""
    known = number(value)
    if known is None:
        return DASH
    return f"{known:,.0f}" if known >= 99.95 else f"{known:.1f}"


def whole(value: Any) -> str:
    """A count: `3,669`."""
    known = number(value)
    return DASH if known is None else f"{known:,.0f}"


def compact(value: Any) -> str:
    """A large count in three digits: `7.76 M`, `512 k`."""
    known = number(value)
    if known is None:
        return DASH
    # The limits lie where rounding to three digits would spill into the next unit.
    for limit, unit, size in ((999.5e6, "G", 1e9), (999.5e3, "M", 1e6), (9995.0, "k", 1e3)):
        if known >= limit:
            scaled = known / size
            return f"{scaled:,.0f} {unit}" if scaled >= 999.5 else f"{scaled:.3g} {unit}"
    return f"{known:,.0f}"


def duration(value: Any) -> str:
    """Seconds as a time: `14.2 s`, `3 min 12 s`, `2 h 05 min`."""
    seconds = number(value)
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def memory(value: Any) -> str:
    """Megabytes: `2,812 MB` or `12.4 GB`."""
    known = number(value)
    if known is None:
        return DASH
    return f"{known:,.0f} MB" if known < 9995 else f"{known / 1000:.1f} GB"
