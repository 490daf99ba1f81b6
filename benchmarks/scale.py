"""What a data set costs before its first sample is decoded, from ten thousand samples to a hundred million."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Contender, ContenderError, Row, peer, ratio
from petseg.classes import OXFORD
from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.index import write_index
from petseg.data.shards.manifest import Encoding, Manifest, Split
from petseg.data.tar import Component, Entry

SAMPLES = (10**4, 10**6, 10**7, 10**8)
QUICK = (10**6,)
A_SHARD = 1000
_MOST_LINKS = 30_000
"""Names of one file: file systems have limits."""
WORLDS = (1, 8, 64, 1024)
CHARTS = {
    "plan": "Planning a pack: listing drawn pets, dealing them to splits and shards",
    "manifest": "Reading the manifest",
    "open": "Opening the shards: every index read, or, of more than 2,000, every size looked at",
    "begin": "The first batch of an epoch's order",
    "seek": "A batch in the middle of an epoch's order",
    "order": "Ordering all of an epoch",
    "memory": "Most memory above what was in use",
}
STEPS = {
    "plan": ("plan", "petseg", "petseg"),
    "manifest": ("manifest", "petseg", "petseg"),
    "open": ("open", "petseg", "petseg"),
    "begin": ("begin", "petseg", "petseg"),
    "begin windows": ("begin", "petseg, a window of 16 shards", "petseg"),
    "order": ("order", "petseg", "petseg"),
    **{f"seek {world}": ("seek", f"petseg, rank {world - 1} of {world}", "petseg") for world in WORLDS},
    "NumPy": ("order", "ceiling: NumPy's permutation", "ceiling"),
    "torch": ("order", "torch's DistributedSampler", "library"),
}
"""What `peers/scale.py` answers: (chart, name, kind)."""
LIMIT_SECONDS = 900.0


def make_shards(folder: Path, samples: int) -> Path:
    """A shard folder of `samples` made-up samples: all its tars are one file of nothing, all indices another.

    Args:
        folder: where it goes; taken as it is if it is there.
        samples: a multiple of `A_SHARD`.

    Returns:
        The folder.
    """
    if (folder / "manifest.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries, at = [], 512
    for i in range(A_SHARD):
        key = f"Sample_{i:06}"
        parts = (Component("jpg", at, 7000, f"{key}.jpg"), Component("png", at + 8192, 1100, f"{key}.png"))
        entries.append(Entry(key, parts))
        at += 8192 + 2048
    names = [f"train-{i:06}.tar" for i in range(samples // A_SHARD)]
    first = folder / names[0]
    with first.open("wb") as file:
        file.truncate(at)
    write_index(first.with_suffix(".idx"), entries)
    for number, name in enumerate(names[1:], 1):
        for suffix in (".tar", ".idx"):
            path = (folder / name).with_suffix(suffix)
            if number % _MOST_LINKS:
                os.link(first.with_suffix(suffix), path)
            else:
                shutil.copyfile(first.with_suffix(suffix), path)
        first = folder / name if number % _MOST_LINKS == 0 else first
    shards = tuple(ShardInfo(name=name, samples=A_SHARD, bytes=at, sha256="0" * 64) for name in names)
    Manifest(
        splits={"train": Split(samples=samples, shards=shards)},
        classes=OXFORD,
        encoding=Encoding(short_side=128, quality=90),
        max_height=128,
        max_width=128,
        pixel_counts={1: 1, 2: 1, 3: 1},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    ).save(folder)
    return folder


def run_all(
    work: Path, counts: Sequence[int], *, peers: bool, repeats: int, progress: Callable[[str], None]
) -> list[Row]:
    """Measure every number of samples, each time in a new process.

    Args:
        work: folder for the made-up shards.
        counts: numbers of samples.
        peers: torch's sampler too.
        repeats: processes of each.
        progress: called with a name after each process.
    """
    rows: dict[tuple[str, int, str], Row] = {}
    for turn in range(repeats):
        for samples in counts:
            shards = make_shards(work / f"made-up-{samples}", samples)
            try:
                found = _measure(shards, peers=peers, plan=not turn)
            except ContenderError as error:
                _row(rows, samples, "open", "petseg", "petseg").note = f"failed: {error}"
                found = {}
            for step, figures in found.items():
                chart, name, kind = STEPS[step]
                _row(rows, samples, chart, name, kind).samples.append(figures["seconds"])
                if figures["memory_mb"] is not None and not step.startswith("seek"):
                    what = name if chart == "order" else step
                    _row(rows, samples, "memory", what, kind).samples.append(figures["memory_mb"])
            progress(f"{samples:,} samples")
    return [rows[key] for key in sorted(rows, key=lambda key: (list(CHARTS).index(key[0]), key[1]))]


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """How many times as fast as the others petseg orders the largest epoch."""
    ordered = [row for row in rows if row.facts["cell"] == CHARTS["order"]]
    largest = max((row.facts["size"] for row in ordered), default=0)
    mine = [row for row in ordered if row.facts["size"] == largest]
    return {step.lower(): ratio(mine, [STEPS[step][1]], ["petseg"]) for step in ("NumPy", "torch")}


def _row(rows: dict[tuple[str, int, str], Row], samples: int, chart: str, name: str, kind: str) -> Row:
    title = CHARTS[chart]
    facts = {"cell": title, "size": samples, "kind": kind, "chart": f"{title}, {samples:,} samples"}
    row = Row(name=name, unit="MB" if chart == "memory" else "s", facts=facts)
    return rows.setdefault((chart, samples, name), row)


def _measure(shards: Path, *, peers: bool, plan: bool) -> dict[str, Any]:
    options = [str(shards), "--worlds", ",".join(map(str, WORLDS)), *([] if peers else ["--no-peers"])]
    options += [] if plan else ["--no-plan"]  # minutes for the largest
    with Contender([*peer("scale.py"), *options]) as child:
        child.wait_ready(LIMIT_SECONDS)
        return child.ready
