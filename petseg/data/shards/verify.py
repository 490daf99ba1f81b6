"""Verification of shards against their manifest, down to the last pixel."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from petseg.data.decode.image_files import DecodeError, ImageError, exif_orientation, opened
from petseg.data.decode.images import decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.hashes import stamp_of
from petseg.data.shards.histogram import histogram
from petseg.data.shards.index import format_index, index_name, read_index
from petseg.data.shards.journal import Journal
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place, RemoteShards
from petseg.data.shards.pool import Report, run_jobs
from petseg.data.shards.stage import Stage
from petseg.data.tar import Entry, scan_tar
from petseg.errors import PetsegError
from petseg.system import read_at

_GROUP = 64
"""Shards of a store that are checked together."""


def verify(
    folder: Place, manifest: Manifest, *, workers: int = 1, progress: Callable[[int], None] | None = None
) -> list[str]:
    """Check every tar: size, SHA-256, index against tar, that every sample decodes in full, and its codes.

    A check that was killed begins where it was: shards that were found sound are remembered in the user's cache folder
    until it has come to its end.

    Args:
        folder: shard folder.
        manifest: its manifest.
        workers: processes, at least 1.
        progress: called with the number of samples checked since the last call.

    Returns:
        One clause a finding, naming the file and the sample; empty if all is well.
    """
    report = progress or (lambda _: None)
    found: list[Checked] = []
    work = _Check(
        (manifest.encoding.image, manifest.encoding.mask),
        frozenset((*manifest.classes.codes, *manifest.classes.ignored)),
    )
    where = os.fsdecode(folder.resolve()) if isinstance(folder, Path) else folder.address
    with Journal("verified", f"{where} {manifest.digest}") as journal:
        for split in manifest.splits.values():
            for group in _groups_of(folder, split.shards):
                known = [_found_before(journal.find(_stamp(folder, each.shard)), each) for each in group]
                found += [each for each in known if each is not None]
                report(sum(len(each.keys) for each in known if each is not None))
                left = [each for each, seen in zip(group, known, strict=True) if seen is None]
                for checked in run_jobs(work, left, workers=workers, progress=report):
                    found.append(checked)
                    if not checked.problems:
                        journal.add(_stamp(folder, checked.shard), checked.counts)
        problems = _together(folder, manifest, found)
        journal.finish()
    return problems


@dataclass(frozen=True, slots=True)
class Checked:
    """Findings of a shard."""

    shard: ShardInfo
    problems: list[str]
    """One clause each."""
    counts: dict[int, int]
    """Mask pixels by code."""
    keys: list[str]


def _stamp(folder: Place, shard: ShardInfo) -> str:
    """A stamp that tells a shard's bytes from others; in the cache of a store's shards that is their name."""
    return stamp_of(folder, shard) if isinstance(folder, Path) else shard.sha256


def _found_before(counts: Any, job: _Job) -> Checked | None:
    """A sound shard, as the journal has it; None where it is to be checked."""
    try:
        keys = [entry.key for entry in read_index(job.index)]
        return Checked(job.shard, [], {int(code): int(n) for code, n in counts.items()}, keys)
    except (PetsegError, AttributeError, TypeError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class _Job:
    """A shard, on this machine."""

    shard: ShardInfo
    path: Path
    index: Path


@dataclass(frozen=True, slots=True)
class _Check:
    """Checks one shard."""

    extensions: tuple[str, str]
    """Of image and mask."""
    known: frozenset[int]
    """Codes that masks may hold."""

    def __call__(self, job: _Job, report: Report) -> Checked:
        """Check a shard: its problems and its contents."""
        counts = np.zeros(256, dtype=np.int64)
        keys: list[str] = []
        problems = self._check(job, keys, counts, report)
        return Checked(job.shard, problems, {int(code): int(counts[code]) for code in np.flatnonzero(counts)}, keys)

    def _check(self, job: _Job, keys: list[str], counts: np.ndarray, report: Report) -> list[str]:
        path, index, shard = job.path, job.index, job.shard
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries = scan_tar(path)
            indexed = index.read_bytes() if index.is_file() else None
        except OSError as error:
            return [f"{path} cannot be read ({error.strerror or error})"]
        except PetsegError as error:
            return [str(error).partition(": ")[0]]
        problems = []
        if size != shard.bytes:
            what = "shorter" if size < shard.bytes else "longer"
            problems.append(f"{path} is {what} than the manifest says ({size} bytes instead of {shard.bytes})")
        if digest != shard.sha256:
            problems.append(f"{path} has another SHA-256 than the manifest says")
        if len(entries) != shard.samples:
            problems.append(f"{path} holds {len(entries)} samples instead of {shard.samples}")
        if indexed is None:
            problems.append(f"{index} is missing")
        elif indexed != format_index(entries):
            problems.append(f"{index} does not fit its tar")
        with path.open("rb") as file:
            for entry in entries:
                try:
                    image, mask = _parts(file.fileno(), entry, self.extensions)
                    _, found = check_sample(image, mask, self.known)
                    counts += found
                except (DecodeError, OSError) as error:
                    problems.append(f"{path}: sample {entry.key}: {error}")
                keys.append(entry.key)
                report(1)
        return problems


def _together(folder: Place, manifest: Manifest, found: Sequence[Checked]) -> list[str]:
    """The problems of all shards, and those that show in all of them together."""
    order = {shard.name: n for n, shard in enumerate(s for each in manifest.splits.values() for s in each.shards)}
    found = sorted(found, key=lambda each: order[each.shard.name])
    problems = [problem for each in found for problem in each.problems]
    seen: set[str] = set()
    counts = Counter[int]()
    for each in found:
        counts.update(each.counts)
        where = folder / each.shard.name if isinstance(folder, Path) else f"{folder}/{each.shard.name}"
        for key in each.keys:
            if key in seen:
                problems.append(f"{where}: sample {key}: its key occurs twice")
            seen.add(key)
    expected = {code: n for code, n in manifest.pixel_counts.items() if n}
    if not problems and counts != expected:
        problems.append(f"{folder}: the masks hold {dict(counts)} pixels by code, the manifest says {expected}")
    return problems


def check_sample(image: bytes, mask: bytes, known: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
    """Decode a sample in full and judge it as a loader needs it.

    Args:
        image: JPEG.
        mask: 8-bit grey PNG.
        known: codes that it may hold.

    Returns:
        (the image, u8[H, W, 3]; pixels of each code, i64[256]).

    Raises:
        DecodeError: one clause.
    """
    pixels, codes = decode_image(image), decode_mask(mask)
    try:
        with opened(image) as header:
            orientation = exif_orientation(header)
    except ImageError as error:
        raise DecodeError(f"image {error}") from error
    if orientation != 1:
        raise DecodeError(f"image is turned by its EXIF orientation ({orientation}), which loaders do not read")
    if pixels.shape[:2] != codes.shape:
        raise DecodeError(f"mask is {codes.shape[1]}x{codes.shape[0]}, its image {pixels.shape[1]}x{pixels.shape[0]}")
    counts = histogram(codes)[0]
    unknown = sorted(set(np.flatnonzero(counts).tolist()).difference(known))
    if unknown:
        raise DecodeError(f"mask holds unknown codes {', '.join(map(str, unknown[:5]))}")
    return pixels, counts


def _groups_of(folder: Place, shards: Sequence[ShardInfo]) -> Iterator[list[_Job]]:
    """Shards that are on this machine at once: all of a folder; of a store some, which are let go after that."""
    if isinstance(folder, Path):
        yield [_Job(shard, folder / shard.name, folder / index_name(shard.name)) for shard in shards]
        return
    stage = Stage(folder, shards)
    try:
        stage.follow(range(len(shards)))
        first = 0
        while first < len(shards):
            numbers = list(range(first, min(len(shards), first + _at_once(folder, shards[first:]))))
            stage.take(numbers, wait=True)
            yield [_Job(shards[number], stage.path(number), stage.index(number)) for number in numbers]
            stage.release(numbers)
            first = numbers[-1] + 1
            stage.reach(first)
    finally:
        stage.close()


def _at_once(folder: RemoteShards, shards: Sequence[ShardInfo]) -> int:
    """How many of the next shards are checked together: while they are, the next ones come."""
    room = math.inf if folder.limit is None else folder.limit / 2
    sizes = itertools.accumulate(shard.bytes for shard in shards[:_GROUP])
    return max(1, sum(size <= room for size in sizes))


def _parts(file: int, entry: Entry, extensions: tuple[str, str]) -> tuple[bytes, bytes]:
    by_extension = {c.extension: c for c in entry.components}
    try:
        image, mask = (by_extension[extension] for extension in extensions)
    except KeyError as error:
        raise DecodeError(f"it has no .{error.args[0]}") from None
    return read_at(file, image.size, image.offset), read_at(file, mask.size, mask.offset)
