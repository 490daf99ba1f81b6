"""Tars made by other tools: an index beside each and a manifest, without rewriting them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from petseg.classes import OXFORD, ClassTable
from petseg.data.decode.image_files import DecodeError
from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.index import format_index, index_name, write_index
from petseg.data.shards.journal import Journal
from petseg.data.shards.manifest import ENCODINGS, Encoding, Manifest, Split
from petseg.data.shards.normalise import frame_marker
from petseg.data.shards.pool import Report, run_jobs
from petseg.data.shards.stats import ShardStats, totals
from petseg.data.shards.verify import check_sample
from petseg.data.sources import TRAINVAL
from petseg.data.sources.files import MANIFEST_NAME, named_split, refuse_unfinished
from petseg.data.tar import Entry, scan_tar
from petseg.errors import PetsegError

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MEMBERS = (*ENCODINGS.values(), ("jpeg", "png"))
"""Extensions of image and mask that are taken."""


def adopt(
    folder: Path,
    classes: ClassTable | None,
    *,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
    planned: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the indices and the manifest of tars that are already fit; the tars are only read.

    Fit means: uncompressed; each sample one `.jpg` (or `.jpeg`) and one 8-bit grey `.png` of its size holding known
    codes, or such a `.ppm` and `.pgm`; keys of letters, digits, _ and -, each once. Splits go by the files' names
    (`train-0.tar`); a tar whose name says none is `train`. With a manifest already there, only indices that do not
    fit are written anew. A run that was killed is resumed by the next one, tar by tar.

    Args:
        folder: where the tars are.
        classes: codes that masks may hold; None for Oxford's, or the manifest's own.
        workers: processes, at least 1.
        progress: called with the number of samples since the last call.
        planned: called once with the number of samples.

    Raises:
        PetsegError: no such folder, an unfinished pack, no tar, or one that has to be repacked (the sentence says how).
    """
    if not folder.is_dir():
        raise PetsegError(f"no such folder: {folder}; give the folder that holds the tars.")
    refuse_unfinished(folder)
    paths = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not paths:
        raise PetsegError(f"{folder} holds no .tar file: give the folder that holds the tars.")
    scanned = {path: scan_tar(path) for path in paths}
    report = progress or (lambda _: None)
    if planned:
        planned(sum(map(len, scanned.values())))
    if (folder / MANIFEST_NAME).exists():
        return _repair(folder, scanned, report)
    look = _Look(folder, classes or OXFORD)
    found: dict[str, _Seen] = {}
    with Journal("indexed", f"{folder.resolve()} {look.classes.to_dict()}") as journal:
        for path, entries in scanned.items():
            if (seen := _Seen.of(journal.find(_stamp(path)))) is not None:
                found[path.name] = seen
                report(len(entries))
        jobs = sorted(((p, each) for p, each in scanned.items() if p.name not in found), key=lambda job: -len(job[1]))
        for seen in run_jobs(look, jobs, workers=workers, progress=report):
            found[seen.stats.name] = seen
            journal.add(_stamp(folder / seen.stats.name), seen.to_json())
        manifest = _manifest(look, [found[path.name] for path in paths])
        journal.finish()
    for path, entries in scanned.items():
        write_index(path.with_name(index_name(path.name)), entries)
    manifest.save(folder)
    return manifest


def _repair(folder: Path, scanned: dict[Path, list[Entry]], report: Report) -> Manifest:
    manifest = Manifest.load(folder)
    for split in manifest.splits.values():
        for shard in split.shards:
            entries = scanned.get(folder / shard.name)
            if entries is None or len(entries) != shard.samples:
                raise PetsegError(f"{folder / shard.name} is not what the manifest says: copy or pack it again.")
            index = folder / index_name(shard.name)
            if not index.is_file() or index.read_bytes() != format_index(entries):
                write_index(index, entries)
            report(len(entries))
    return manifest


def _stamp(tar: Path) -> str:
    """A stamp that tells a tar from others of its name; empty if there is no such tar."""
    with contextlib.suppress(OSError):
        stat = tar.stat()
        return f"{tar.name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What one tar is found to be."""

    stats: ShardStats
    """With the tar's `info`, and SHA-256 of each sample's bytes."""
    extensions: tuple[str, str]
    """Of image and mask."""

    @property
    def info(self) -> ShardInfo:
        """The tar."""
        assert self.stats.info is not None
        return self.stats.info

    def to_json(self) -> list[Any]:
        """For the journal."""
        return [json.loads(self.stats.to_bytes()), *self.extensions]

    @classmethod
    def of(cls, data: Any) -> Self | None:
        """The inverse of `to_json`; None for other data."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            stats, image, mask = data
            return cls(stats=ShardStats.from_bytes(json.dumps(stats).encode()), extensions=(str(image), str(mask)))
        return None


@dataclass(frozen=True, slots=True)
class _Look:
    """Checks and counts the samples of one tar."""

    folder: Path
    classes: ClassTable

    def __call__(self, job: tuple[Path, list[Entry]], report: Report) -> _Seen:
        """What it is.

        Raises:
            PetsegError: it does not fit.
        """
        path, entries = job
        if not entries:
            raise PetsegError(f"{path} holds no sample: remove it.")
        stats = ShardStats(name=path.name)
        extensions: tuple[str, str] | None = None
        known = {*self.classes.codes, *self.classes.ignored}
        with path.open("rb") as file:
            for entry in entries:
                found, image, mask = self._parts(path, entry, file.read, file.seek)
                if found != (extensions or found):
                    raise self.of_another_kind(path, entry.key, found, extensions or found)
                extensions = found
                try:
                    pixels, counts = check_sample(image, mask, known)
                except DecodeError as error:
                    raise self.unfit(path, entry.key, str(error)) from error
                if entry.key in stats.digests:
                    raise self.unfit(path, entry.key, f"its key occurs in {path.name} too")
                stats.add(pixels, counts, progressive=frame_marker(image) == 0xC2)
                stats.digests[entry.key] = hashlib.sha256(image + mask).hexdigest()
                report(1)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        assert extensions is not None
        stats.info = ShardInfo(name=path.name, samples=len(entries), bytes=path.stat().st_size, sha256=sha256)
        return _Seen(stats=stats, extensions=extensions)

    def of_another_kind(self, path: Path, key: str, found: tuple[str, str], first: tuple[str, str]) -> PetsegError:
        """The sentence for a sample whose image is stored in another way than those before it."""
        return self.unfit(path, key, f"its image is a .{found[0]}, others are .{first[0]}")

    def unfit(self, path: Path, key: str, why: str) -> PetsegError:
        """The sentence for a sample that does not fit."""
        return PetsegError(
            f"{path}: sample {key} does not fit: {why}; repack the tars: petseg-shard 'tars:{self.folder}/*.tar' OUT"
        )

    def _parts(
        self, path: Path, entry: Entry, read: Callable[[int], bytes], seek: Callable[[int], int]
    ) -> tuple[tuple[str, str], bytes, bytes]:
        """The extensions of a sample's image and mask, and their bytes."""
        if not _KEY.fullmatch(entry.key):
            raise self.unfit(path, entry.key, "its key holds other characters than letters, digits, _ and -")
        extensions = sorted(c.extension for c in entry.components)
        found = next((pair for pair in _MEMBERS if sorted(pair) == extensions), None)
        if found is None:
            raise self.unfit(path, entry.key, f"its members are {', '.join(extensions)}, not one jpg and one png")
        parts = {}
        for component in entry.components:
            seek(component.offset)
            parts[component.extension] = read(component.size)
        return found, parts[found[0]], parts[found[1]]


def _manifest(look: _Look, every: list[_Seen]) -> Manifest:
    """The manifest of all tars, in their order.

    Raises:
        PetsegError: a key stands in two of them, or they are of two kinds.
    """
    holder: dict[str, str] = {}
    digest = hashlib.sha256()
    splits: dict[str, list[ShardInfo]] = {}
    for seen in every:
        path = look.folder / seen.info.name
        for key, sha256 in seen.stats.digests.items():
            if seen.extensions != every[0].extensions:
                raise look.of_another_kind(path, key, seen.extensions, every[0].extensions)
            if key in holder:
                raise look.unfit(path, key, f"its key occurs in {holder[key]} too")
            holder[key] = seen.info.name
            digest.update(f"{key} {sha256}\n".encode())
        splits.setdefault(split_of(seen.info.name), []).append(seen.info)
    stats = [seen.stats for seen in every]
    trained = [each for each in stats if split_of(each.name) == "train"]
    image, mask = every[0].extensions
    return Manifest(
        splits={
            name: Split(samples=sum(info.samples for info in splits[name]), shards=tuple(splits[name]))
            for name in ("train", "val", "test")
            if name in splits
        },
        classes=look.classes,
        encoding=Encoding(short_side=0, quality=0, image=image, mask=mask),
        **totals(stats, trained, look.classes),
        source_digest=digest.hexdigest(),
    )


def split_of(name: str) -> str:
    """The split that a tar goes to: as its name says, `train` where that says none or `trainval`."""
    split = named_split(name)
    return "train" if split in {None, TRAINVAL} else str(split)
