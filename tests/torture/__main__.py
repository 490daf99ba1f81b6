"""`python -m tests.torture --minutes N`: everything at random for as long as wanted; counts and seeds as JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from petseg.system import cpu_model, usable_cores, versions
from tests.torture.fuzz import fuzz
from tests.torture.kill import kill_packs, kill_trainings
from tests.torture.ranks import kill_ranks
from tests.torture.remote import torture_stores

PARTS: dict[str, tuple[float, Callable[..., Any]]] = {
    "packs killed": (0.1, kill_packs),
    "trainings killed": (0.72, kill_trainings),
    "ranks killed": (0.11, kill_ranks),
    "bytes altered": (0.07, fuzz),
    "stores that fail": (0.1, torture_stores),
}
"""Each part's share of the time, and what does it."""


def main() -> int:
    """Do every part for its share of the time; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    chosen = {name: part for name, part in PARTS.items() if not given.part or name in given.part}
    shares = sum(share for share, _ in chosen.values())
    counts = {}
    for name, (share, work) in chosen.items():
        end = time.monotonic() + 60 * given.minutes * share / shares
        with tempfile.TemporaryDirectory(prefix="petseg-torture-") as folder:
            counts[name] = work(
                Path(folder), random.Random(f"{seed} {name}"), lambda _, end=end: time.monotonic() > end
            )
    result = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "machine": f"{usable_cores()} cores of {cpu_model()}",
        "versions": versions(),
        "seed": seed,
        "minutes": given.minutes,
        "parts": {name: tally.to_dict() for name, tally in counts.items()},
    }
    print(json.dumps(result, indent=1))
    return int(any(tally.faults for tally in counts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
