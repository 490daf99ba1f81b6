"""Packing a source into a folder of indexed shards: the same bytes with any number of workers, killed or not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from petseg.data.shards.added import Base, together
from petseg.data.shards.begun import Begun, begun
from petseg.data.shards.collected import Collected
from petseg.data.shards.copies import Copies, find_copies
from petseg.data.shards.manifest import ENCODINGS, Dealt, Encoding, Manifest, Split
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import Output, output_of
from petseg.data.shards.plan import SPLITS, Plan, split_of
from petseg.data.shards.pool import Runner, run_jobs
from petseg.data.shards.stats import ShardStats, totals
from petseg.data.shards.thinning import Thinned, thinned_classes
from petseg.data.shards.work import ShardJob, ShardWork, finished_shard
from petseg.data.sources import Listing, Rejected, Source
from petseg.errors import PetsegError

_FIRST_SHARDS = 64
"""After each of these it is judged whether the rest is worth its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """How a pack went; what holds of the result itself is in the manifest."""

    manifest: Manifest
    seconds: float
    bytes_in: int
    """Bytes read from the source, in this run and the ones it resumed."""
    bytes_out: int
    """Bytes of all tars."""
    converted: int
    """Samples whose image was no sound, upright RGB JPEG: other formats and colours, turned by EXIF."""
    split_by: str
    """What says who is in which split: `lists`, `folders` or `chance`."""
    unlisted: tuple[str, ...]
    """Keys that were left out because they are on no list."""
    ignored: int
    """Files that the source passed over by name."""
    rejected: tuple[Rejected, ...]
    """In this pack; the manifest has those of what it was added to, too."""
    there: int
    """Samples that were there before, where it was added to them."""
    copies: Copies | None
    """Images that stand in two splits; not looked for in more than `collected.MOST_LOOKS` samples."""
    thinned: tuple[Thinned, ...]
    """Classes of which making masks smaller left little, or pieces."""
    resumed_shards: int
    """Shards that an earlier, killed run had finished."""


def pack(
    source: Source,
    out: Path | str,
    options: PackOptions,
    *,
    workers: int,
    allow_rejects: bool = False,
    listing: Listing | None = None,
    progress: Callable[[int], None] | None = None,
    planned: Callable[[int], None] | None = None,
    base: Base | None = None,
    run: Runner = run_jobs,
) -> PackReport:
    """Pack a source into shards.

    Equal sources and options give equal bytes, whatever `workers` is and however often the run was killed. Every file
    appears under its final name when it is whole, the manifest last. A run that is killed, interrupted or out of disk
    leaves its finished shards; the same call resumes from them, and redoes those whose sources changed since. A shard
    whose samples were all rejected is left out, and so is a split without shards; the other shards keep their names.

    Args:
        source: where the pairs come from; picklable if `workers` is more than 1.
        out: folder to be made, an empty one, or one where the same pack was begun; or an address in a store.
        options: what decides about the bytes.
        workers: processes, at least 1; 1 works in this process. Scripts that ask for more need the usual
            `if __name__ == "__main__"`.
        allow_rejects: finish whatever was rejected, and whatever class has no pixel (see `Judge`).
        listing: the source's, where the caller has it.
        progress: called in this process with the number of samples finished since its last call (rejected ones and
            those of an earlier run too).
        planned: called once, before any sample is read, with the number of samples.
        base: the finished pack in `out`, to which what it does not hold is added (`base_of`): no file of it is touched
            but the manifest, and no sample changes its split.
        run: does the work, on this machine or on others (`RayCluster`).

    Returns:
        The report, with the manifest that was written.

    Raises:
        PetsegError: bad options or source, an output folder that holds something else, a full disk, or a worker that
            died; a `RefusedError` where too much was lost: what was packed stays for the same call with
            `allow_rejects`, and makes way for any other.
    """
    started = time.perf_counter()
    if workers < 1:
        raise PetsegError(f"--workers must be at least 1, not {workers}.")
    listing = listing or source.listing()
    place = output_of(out)
    with begun(source, listing, options, place, workers=workers, alone=True, base=base, run=run) as found:
        if planned:
            planned(found.plan.samples)
        done = packed(found, place, found.jobs(), workers, progress, judged=not allow_rejects, run=run)
        return concluded(found, place, done, allow_rejects=allow_rejects, started=started)


def packed(
    found: Begun,
    out: Output,
    jobs: Sequence[ShardJob],
    workers: int,
    progress: Callable[[int], None] | None,
    *,
    judged: bool,
    run: Runner = run_jobs,
) -> Collected:
    """Pack shards; what was counted of them."""
    judge = found.judge
    work = ShardWork(source=found.source, out=out, options=found.options, machine=found.machine)
    done = Collected(found.plan)
    every = ShardStats(name="")
    with contextlib.closing(run(work, jobs, workers=workers, progress=progress or (lambda _: None))) as results:
        for stats in results:
            if run is not run_jobs and finished_shard(out, stats.name) is None:
                raise PetsegError(
                    f"{out}: a worker wrote {stats.name}, and it is not here: give a folder that all nodes share, or "
                    "an address in a store."
                )
            done.add(stats)
            if judged and len(done.stats) <= _FIRST_SHARDS:
                judge.so_far(done)
            _add_palette(every, stats)
    return done


def _add_palette(every: ShardStats, stats: ShardStats) -> None:
    for code, (red, green, blue, mask) in stats.palette.items():
        every.add_palette({code: (red, green, blue)}, mask)


def concluded(found: Begun, out: Output, done: Collected, *, allow_rejects: bool, started: float) -> PackReport:
    """Judge the whole, and write the manifest."""
    listing, plan, options = found.listing, found.plan, found.options
    every = ShardStats(name="")
    counted = list(done.stats.values())
    for stats in counted:
        _add_palette(every, stats)
    manifest = added = _manifest(found.source, listing, plan, options, done)
    if not (allow_rejects and manifest.splits):
        found.judge.at_the_end(done, listing.rejected)
    copies = find_copies(done.looks, done.splits)
    if found.base:
        found.base.check_unchanged(out)
        manifest = together(found.base.manifest, added)
    written = manifest.files()
    for name, data in written.items():
        out.write(name, data)
    if found.base:
        out.remove(found.base.manifest.files().keys() - written.keys())
    out.clear()
    return PackReport(
        manifest=manifest,
        seconds=time.perf_counter() - started,
        bytes_in=sum(stats.bytes_in for stats in counted),
        bytes_out=sum(shard.bytes for split in added.splits.values() for shard in split.shards),
        converted=sum(stats.converted for stats in counted),
        split_by="chance" if options.split == "random" else listing.split_by,
        unlisted=plan.unlisted,
        ignored=listing.ignored,
        rejected=added.rejected,
        there=sum(split.samples for split in found.base.manifest.splits.values()) if found.base else 0,
        copies=copies,
        thinned=thinned_classes((stats.thin for stats in counted), manifest.classes),
        resumed_shards=sum(stats.resumed for stats in counted),
    )


def _encoding(options: PackOptions) -> Encoding:
    image, mask = ENCODINGS[options.encoding]
    quality = options.quality if options.encoding == "jpeg" else 0
    return Encoding(short_side=options.short_side, quality=quality, image=image, mask=mask, tones=options.tones)


def _manifest(source: Source, listing: Listing, plan: Plan, options: PackOptions, done: Collected) -> Manifest:
    splits: dict[str, Split] = {}
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in plan.sizes:
        names[split_of(name)].append(name)
    for split in SPLITS:
        shards = [info for name in names[split] if (info := done.stats[name].info) is not None]
        if shards:
            splits[split] = Split(samples=sum(shard.samples for shard in shards), shards=tuple(shards))
    every = list(done.stats.values())
    trained = [stats for name, stats in done.stats.items() if split_of(name) == "train" and stats.pixels]
    rejected = [*listing.rejected, *(each for stats in every for each in stats.rejected)]
    return Manifest(
        splits=splits,
        classes=source.classes,
        encoding=_encoding(options),
        **totals(every, trained, source.classes),
        source_digest=done.digest(),
        rejected=tuple(sorted(rejected, key=lambda each: (each.key, each.reason))),
        dealt=Dealt(split=options.split, seed=options.seed, group=options.group),
    )
