"""How fast source files become shards, wall time of the whole command, beside one process that writes tars."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import Cell
from benchmarks.harness import ROOT, ContenderError, Row, interleave, number, peer, ratio
from petseg.data.tar import scan_tar

LIMIT_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender."""

    name: str
    short_side: int
    """Pixels that it reduces to; 0 for the original bytes."""
    kind: str
    options: tuple[str, ...]


ENTRIES = (
    Entry("petseg-shard, 1 worker", 0, "petseg", ("--workers", "1")),
    Entry("petseg-shard, 2 workers", 0, "petseg", ("--workers", "2")),
    Entry("petseg-shard, 1 worker", 128, "petseg", ("--workers", "1")),
    Entry("petseg-shard, 2 workers", 128, "petseg", ("--workers", "2")),
    Entry("ShardWriter, copies", 0, "ceiling", ("--work", "copy")),
    Entry("ShardWriter, decodes and checks", 0, "library", ("--work", "check")),
    Entry("ShardWriter, decodes, checks and resizes", 128, "library", ("--work", "resize")),
)


def run_size(
    originals: Cell,
    entries: Sequence[Entry],
    *,
    repeats: int,
    scratch: Path,
    progress: Callable[[str], None],
) -> list[Row]:
    """Measure all contenders on one number of images.

    Args:
        originals: the source files.
        entries: the contenders.
        repeats: packs of each.
        scratch: folder for what they write; emptied after each.
        progress: called with a contender's name after each pack.
    """
    source = originals.folder / "files"
    samples = originals.manifest.split("train").samples
    rows: dict[str, Row] = {}
    measures: dict[str, Callable[[], float]] = {}
    for entry in entries:
        what = f"reduced to {entry.short_side}" if entry.short_side else "original bytes"
        facts = {"cell": what, "size": samples, "kind": entry.kind, "chart": f"Packing {samples:,} images, {what}"}
        key = f"{entry.name} {entry.short_side}"
        rows[key] = Row(name=entry.name, unit="images/s", facts=facts)
        measures[key] = _pack(entry, source, samples, scratch, rows[key])

    interleave(measures, rows, repeats, lambda: progress(""))
    for row in rows.values():
        if row.samples:
            row.facts["detail"] = f"{number(samples / float(row.to_dict()['median']))} s"
    return list(rows.values())


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """The best of petseg over one process with ShardWriter, for the largest number of images."""
    largest = max((row.facts["size"] for row in rows), default=0)
    mine = [row for row in rows if row.facts["size"] == largest]
    ours = [entry.name for entry in ENTRIES if entry.kind == "petseg"]
    one = [name for name in ours if "1 worker" in name]
    kept = [row for row in mine if row.facts["cell"] == "original bytes"]
    reduced = [row for row in mine if row.facts["cell"] != "original bytes"]
    return {
        "copies": ratio(kept, ours, ["ShardWriter, copies"]),
        "checks": ratio(kept, ours, ["ShardWriter, decodes and checks"]),
        "checks_one_worker": ratio(kept, one, ["ShardWriter, decodes and checks"]),
        "resizes": ratio(reduced, ours, ["ShardWriter, decodes, checks and resizes"]),
        "resizes_one_worker": ratio(reduced, one, ["ShardWriter, decodes, checks and resizes"]),
    }


def _pack(entry: Entry, source: Path, samples: int, scratch: Path, row: Row) -> Callable[[], float]:
    out = scratch / "packed"
    if entry.kind == "petseg":
        starter = [sys.executable, str(ROOT.parent / "tools" / "make_shards.py")]
        given = f"folder:{source / 'images'},{source / 'masks'}"
    else:
        starter, given = peer("tar_writer.py"), str(source)
    command = [*starter, given, str(out), "--short-side", str(entry.short_side), *entry.options]

    def once() -> float:
        shutil.rmtree(out, ignore_errors=True)
        try:
            seconds = _timed(command)
            written = sum(len(scan_tar(path)) for path in out.glob("*.tar"))
            row.facts["bytes"] = sum(path.stat().st_size for path in out.glob("*.tar"))
        finally:
            shutil.rmtree(out, ignore_errors=True)
        if written != samples:
            row.note = f"it wrote {written} of {samples} samples"
        return samples / seconds

    return once


def _timed(command: Sequence[str]) -> float:
    """Seconds from start to end."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ContenderError(f"it did not end within {LIMIT_SECONDS} s") from None
    seconds = time.perf_counter() - start
    if done.returncode:
        raise ContenderError((done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1][:300])
    return seconds
