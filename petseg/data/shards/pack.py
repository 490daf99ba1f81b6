"""Packing a source into a folder of indexed shards: the same bytes with any number of workers, killed or not."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from petseg.data.shards.copies import Copies, find_copies
from petseg.data.shards.index import index_name
from petseg.data.shards.judge import Judge
from petseg.data.shards.manifest import ENCODINGS, Encoding, Manifest, Split
from petseg.data.shards.options import PackOptions
from petseg.data.shards.plan import SPLITS, Plan, make_plan, split_of
from petseg.data.shards.pool import run_jobs
from petseg.data.shards.probe import probe
from petseg.data.shards.stats import ShardStats, code_counts, mean_std
from petseg.data.shards.survey import survey
from petseg.data.shards.thinning import Thinned, thinned_classes
from petseg.data.shards.work import ShardJob, ShardWork, cannot_write, stats_path
from petseg.data.sources import Listing, Rejected, Source
from petseg.data.sources.files import MANIFEST_NAME, WORK_FOLDER
from petseg.errors import PetsegError, RefusedError
from petseg.system import locked, write_atomic

PLAN_NAME = "plan.json"

_REFUSED = "refused"
"""In the work folder: its pack lost too much, and any other may take its place."""

_FIRST_SHARDS = 64
"""After each of these it is judged whether the rest is worth its time."""

# Other versions of these may write other bytes; a pack that was begun with one is not finished with another.
_ENCODERS = ("deflate", "numpy", "opencv-python-headless", "pillow", "simplejpeg")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """How a pack went; what holds of the result itself is in the manifest."""

    manifest: Manifest
    seconds: float
    bytes_in: int
    """Bytes read from the source, in this run and the ones it went on from."""
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
    """As in the manifest."""
    copies: Copies | None
    """Pictures that stand in two splits."""
    thinned: tuple[Thinned, ...]
    """Classes of which making masks smaller left little, or pieces."""
    resumed_shards: int
    """Shards that an earlier, killed run had finished."""


def pack(
    source: Source,
    out: Path,
    options: PackOptions,
    *,
    workers: int,
    allow_rejects: bool = False,
    listing: Listing | None = None,
    progress: Callable[[int], None] | None = None,
    planned: Callable[[int], None] | None = None,
) -> PackReport:
    """Pack a source into shards.

    Equal sources and options give equal bytes, whatever `workers` is and however often the run was killed. Every file
    appears under its final name when it is whole, the manifest last. A run that is killed, interrupted or out of disk
    leaves its finished shards; the same call goes on from them, and redoes those whose sources changed since. A shard
    whose samples were all rejected is left out, and so is a split without shards; the other shards keep their names.

    Args:
        source: where the pairs come from; picklable if `workers` is more than 1.
        out: folder to be made, an empty one, or one where the same pack was begun.
        options: what decides about the bytes.
        workers: processes, at least 1; 1 works in this process. Scripts that ask for more need the usual
            `if __name__ == "__main__"`.
        allow_rejects: finish whatever was rejected, and whatever class has no pixel (see `Judge`).
        listing: the source's, where the caller has it.
        progress: called in this process with the number of samples finished since its last call (rejected ones and
            those of an earlier run too).
        planned: called once, before any sample is read, with the number of samples.

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
    report = progress or (lambda _: None)
    listing = listing or source.listing()
    plan = make_plan(listing, options.split, options.seed, options.samples_per_shard, options.group)
    pairs = {pair.key: pair for pair in listing.pairs}
    chosen = [pairs[key] for keys in plan.shards.values() for key in keys]
    options = survey(source, chosen, options, workers=workers)
    identity = _identity(source, listing, plan, options)
    notes = out / WORK_FOLDER
    with _folder(out, identity):
        if planned:
            planned(plan.samples)
        finished = {name: stats for name in plan.shards if (stats := _finished(out, name)) is not None}
        done: dict[str, ShardStats] = {}
        jobs = [
            ShardJob(name=name, pairs=tuple(pairs[key] for key in keys), finished=finished.get(name))
            for name, keys in plan.shards.items()
        ]
        jobs.sort(key=lambda job: -len(job.pairs))
        judge = Judge(source, {pair.key: pair for pair in chosen})
        work = ShardWork(source=source, out=out, notes=notes, options=options)
        with contextlib.closing(run_jobs(work, jobs, workers=workers, progress=report)) as results:
            every = ShardStats(name="")
            for stats in results:
                done[stats.name] = stats
                if not allow_rejects and len(done) <= _FIRST_SHARDS:
                    judge.so_far(done.values())
                for code, (red, green, blue, mask) in stats.palette.items():
                    every.add_palette({code: (red, green, blue)}, mask)
        manifest = _manifest(source, listing, plan, options, done)
        if not (allow_rejects and manifest.splits):
            judge.at_the_end(done.values(), listing.rejected)
        copies = find_copies(
            {key: look for stats in done.values() for key, look in stats.looks.items()},
            {key: split_of(name) for name, stats in done.items() for key in stats.looks},
        )
        manifest.save(out)
        shutil.rmtree(notes)
    return PackReport(
        manifest=manifest,
        seconds=time.perf_counter() - started,
        bytes_in=sum(stats.bytes_in for stats in done.values()),
        bytes_out=sum(shard.bytes for split in manifest.splits.values() for shard in split.shards),
        converted=sum(stats.converted for stats in done.values()),
        split_by="chance" if options.split == "random" else listing.split_by,
        unlisted=plan.unlisted,
        ignored=listing.ignored,
        rejected=manifest.rejected,
        copies=copies,
        thinned=thinned_classes((stats.thin for stats in done.values()), manifest.classes),
        resumed_shards=sum(stats.resumed for stats in done.values()),
    )


def _identity(source: Source, listing: Listing, plan: Plan, options: PackOptions) -> bytes:
    """What a run must share with one that was killed, to go on from it: content of `plan.json`."""
    found = hashlib.sha256()
    for pair in sorted(listing.pairs, key=lambda pair: pair.key):
        found.update(f"{pair.key}\0{pair.size}\0{pair.split}\n".encode())
    data = {
        "listing": found.hexdigest(),
        "classes": source.classes.to_dict(),
        "reading": asdict(source.classes.reading),
        "options": asdict(options),
        "versions": {name: importlib.metadata.version(name) for name in ("petseg", *_ENCODERS)},
        "probe": probe(),
        "shards": {name: list(keys) for name, keys in plan.shards.items()},
    }
    return (json.dumps(data, indent=1) + "\n").encode()


@contextlib.contextmanager
def _folder(out: Path, identity: bytes) -> Iterator[None]:
    """The output folder, ours alone while it is packed; files that are not whole are gone afterwards."""
    notes = out / WORK_FOLDER
    _check_folder(out, identity)
    try:
        notes.mkdir(parents=True, exist_ok=True)
        with _locked(out, notes):
            # Again, now that nobody else can: another run may have finished between the first look and the lock.
            try:
                _check_folder(out, identity)
            except PetsegError:
                if (out / MANIFEST_NAME).exists():
                    shutil.rmtree(notes)  # made by this run alone
                raise
            _sweep(out)
            try:
                if (notes / _REFUSED).exists():
                    _make_way(out, identity)
                if not (notes / PLAN_NAME).exists():
                    write_atomic(notes / PLAN_NAME, identity)
                yield
            except RefusedError:
                if any(out.glob("*.tar")):
                    (notes / _REFUSED).touch()
                    raise
                shutil.rmtree(notes)
                with contextlib.suppress(OSError):
                    out.rmdir()
                raise
            finally:
                _sweep(out)
    except OSError as error:
        raise cannot_write(out, error) from error


def _check_folder(out: Path, identity: bytes) -> None:
    try:
        found = sorted(entry.name for entry in out.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise PetsegError(f"{out} is a file: give a folder to pack into.") from None
    except OSError as error:
        raise PetsegError(f"{out} cannot be read ({error.strerror}): choose another folder.") from error
    if (out / WORK_FOLDER).is_symlink():
        raise PetsegError(f"{out / WORK_FOLDER} is a link, through which nothing is written: choose another folder.")
    if WORK_FOLDER in found:
        try:
            begun = (out / WORK_FOLDER / PLAN_NAME).read_bytes()
        except FileNotFoundError:
            begun = identity  # killed before its plan was written: then there is nothing else of it either
            found = [name for name in found if name != WORK_FOLDER]
        except OSError as error:
            raise PetsegError(f"{out} cannot be read ({error.strerror}): choose another folder.") from error
        if begun != identity and not (out / WORK_FOLDER / _REFUSED).exists():
            raise PetsegError(
                f"{out} holds an unfinished pack of another source, with other options or by other versions: choose "
                "another folder, or remove it."
            )
        if WORK_FOLDER in found:
            return
    if MANIFEST_NAME in found:
        raise PetsegError(f"{out} already holds a finished pack: choose another folder, or remove it to pack again.")
    if found:
        raise PetsegError(f"{out} already holds something else ({found[0]}): choose an empty or new folder.")


@contextlib.contextmanager
def _locked(out: Path, notes: Path) -> Iterator[None]:
    """Keeps a second run out of the folder; the system lets go of the lock when the process ends in any way."""
    # Never through a link: somebody else may have made the folder.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(notes / "lock", flags, 0o666), "r+b") as file, contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(file.fileno(), wait=False))
        except BlockingIOError:
            raise PetsegError(f"{out} is being packed by another process: wait for it.") from None
        yield


def _make_way(out: Path, identity: bytes) -> None:
    """Take back that a pack was refused, and all of it if another is to be made."""
    notes = out / WORK_FOLDER
    begun = (notes / PLAN_NAME).read_bytes()
    if begun != identity:
        for name in json.loads(begun)["shards"]:
            for path in (out / name, out / index_name(name), stats_path(notes, name)):
                path.unlink(missing_ok=True)
        (notes / PLAN_NAME).unlink()
    (notes / _REFUSED).unlink()


def _sweep(out: Path) -> None:
    """Remove what runs that ended too early had begun to write."""
    for folder in (out, out / WORK_FOLDER):
        for partial in folder.glob(".*.partial-*"):
            partial.unlink(missing_ok=True)


def _finished(out: Path, name: str) -> ShardStats | None:
    """What an earlier run noted of a shard when it had written it."""
    try:
        return ShardStats.load(stats_path(out / WORK_FOLDER, name))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _encoding(options: PackOptions) -> Encoding:
    image, mask = ENCODINGS[options.encoding]
    quality = options.quality if options.encoding == "jpeg" else 0
    return Encoding(short_side=options.short_side, quality=quality, image=image, mask=mask, tones=options.tones)


def _manifest(
    source: Source, listing: Listing, plan: Plan, options: PackOptions, done: dict[str, ShardStats]
) -> Manifest:
    splits: dict[str, Split] = {}
    for split in SPLITS:
        shards = [info for name in plan.of_split(split) if (info := done[name].info) is not None]
        if shards:
            splits[split] = Split(samples=sum(shard.samples for shard in shards), shards=tuple(shards))
    every = list(done.values())
    trained = [stats for name, stats in done.items() if split_of(name) == "train" and stats.pixels]
    mean, std = mean_std(trained or every)
    rejected = [*listing.rejected, *(each for stats in every for each in stats.rejected)]
    return Manifest(
        splits=splits,
        classes=source.classes,
        encoding=_encoding(options),
        max_height=max(stats.max_height for stats in every),
        max_width=max(stats.max_width for stats in every),
        pixel_counts=code_counts(every, source.classes),
        mean=mean,
        std=std,
        progressive=sum(stats.progressive for stats in every),
        source_digest=_digest(every),
        rejected=tuple(sorted(rejected, key=lambda each: (each.key, each.reason))),
    )


def _digest(every: list[ShardStats]) -> str:
    digests = {key: digest for stats in every for key, digest in stats.digests.items()}
    total = hashlib.sha256()
    for key in sorted(digests):
        total.update(f"{key} {digests[key]}\n".encode())
    return total.hexdigest()
