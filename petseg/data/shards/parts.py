"""Packing on several machines: each packs parts into one output, and one writes the manifest when all are there."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from petseg.data.shards.added import Base
from petseg.data.shards.begun import begun, part_of, planned_sizes
from petseg.data.shards.collected import Collected
from petseg.data.shards.judge import some_of
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import PLAN_NAME, Output, output_of
from petseg.data.shards.pack import PackReport, concluded, packed
from petseg.data.shards.work import finished_shard
from petseg.data.sources import Listing, Rejected, Source
from petseg.data.sources.files import MANIFEST_NAME
from petseg.errors import PetsegError


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """How the packing of a part went."""

    shards: int
    """Of the part."""
    of: int
    """Shards of the whole pack."""
    samples: int
    """Packed in this part."""
    rejected: tuple[Rejected, ...]
    resumed_shards: int
    """Shards that had been finished before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How far a pack is."""

    finished: bool
    """Its manifest is written."""
    shards: int
    """Of the pack, or of the part that was asked about; 0 where it is finished."""
    missing: tuple[str, ...]
    """File names of those that are not packed yet."""


def status(out: Output, part: tuple[int, int] = (1, 1)) -> Status:
    """How far the pack of an output is, or a part of it.

    Raises:
        PetsegError: there is none.
    """
    manifest, data = out.read(MANIFEST_NAME), out.read(PLAN_NAME)
    plan = json.loads(data) if data else {}
    if manifest is not None and plan.get("base") != hashlib.sha256(manifest).hexdigest():
        return Status(finished=True, shards=0, missing=())
    if not plan:
        raise PetsegError(f"{out} holds no pack that was begun.")
    names, sizes = part_of(planned_sizes(plan, out), part), out.sizes()
    return Status(
        finished=False,
        shards=len(names),
        missing=tuple(
            name
            for name in names
            if (stats := finished_shard(out, name)) is None
            or (stats.info is not None and sizes.get(name) != stats.info.bytes)
        ),
    )


def pack_part(
    source: Source,
    out: Path | str,
    options: PackOptions,
    part: tuple[int, int],
    *,
    workers: int,
    allow_rejects: bool = False,
    listing: Listing | None = None,
    progress: Callable[[int], None] | None = None,
    planned: Callable[[int], None] | None = None,
    base: Base | None = None,
) -> PartReport:
    """Pack some of the shards, on one of several machines that share the output.

    Parts may be packed in any order, twice, and at once; `finish` then writes the manifest.

    Args:
        source: as `pack`'s, and so are the others.
        out: a folder that the machines share, or an address in a store.
        options: the same for all parts.
        part: (i, n) for the i-th of n, from 1 on.
        workers: processes of this machine.
        allow_rejects: as `pack`'s.
        listing: as `pack`'s.
        progress: as `pack`'s.
        planned: called with the number of the part's samples.
        base: as `pack`'s.

    Raises:
        PetsegError: as `pack`'s; also a machine that would write other bytes than the one that began the pack.
    """
    check_part(part)
    if workers < 1:
        raise PetsegError(f"--workers must be at least 1, not {workers}.")
    listing = listing or source.listing()
    place = output_of(out)
    with begun(source, listing, options, place, workers=workers, alone=False, base=base) as found:
        jobs = found.jobs(part)
        if planned:
            planned(sum(found.plan.sizes[name] for name in part_of(found.plan.sizes, part)))
        done = packed(found, place, jobs, workers, progress, judged=not allow_rejects)
    return PartReport(
        shards=len(jobs),
        of=len(found.plan.sizes),
        samples=sum(stats.info.samples for stats in done.stats.values() if stats.info),
        rejected=tuple(each for stats in done.stats.values() for each in stats.rejected),
        resumed_shards=sum(stats.resumed for stats in done.stats.values()),
    )


def finish(
    source: Source,
    out: Path | str,
    options: PackOptions,
    *,
    allow_rejects: bool = False,
    listing: Listing | None = None,
    base: Base | None = None,
) -> PackReport:
    """Write the manifest of a pack whose parts are all there; the bytes are those of `pack` on one machine.

    Raises:
        PetsegError: a shard is missing; as `pack`'s.
    """
    started = time.perf_counter()
    listing = listing or source.listing()
    place = output_of(out)
    with begun(source, listing, options, place, workers=1, alone=True, base=base) as found:
        state = status(place)
        if state.missing:
            raise PetsegError(
                f"{out}: {len(state.missing)} of {state.shards} shards are missing ({some_of(state.missing)}): pack "
                "their parts again, or all that is missing by the same command without --finish."
            )
        done = Collected(found.plan)
        for name in found.plan.sizes:
            if (stats := finished_shard(place, name)) is not None:
                done.add(stats)
        return concluded(found, place, done, allow_rejects=allow_rejects, started=started)


def check_part(part: tuple[int, int]) -> None:
    """Check (i, n).

    Raises:
        PetsegError: i is not from 1 to n.
    """
    number, count = part
    if not 1 <= number <= count:
        raise PetsegError(
            f"--part {number}/{count}: parts are counted from 1, so give 1/{max(1, count)} to "
            f"{max(1, count)}/{max(1, count)}."
        )
