"""Tars made by other tools: an index beside each and a manifest, without rewriting them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from petseg.classes import OXFORD, ClassTable
from petseg.data.decode.pictures import DecodeError
from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.index import format_index, index_name, write_index
from petseg.data.shards.manifest import ENCODINGS, Encoding, Manifest, Split
from petseg.data.shards.normalise import frame_marker
from petseg.data.shards.stats import ShardStats, code_counts, mean_std
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
    progress: Callable[[int], None] | None = None,
    planned: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the indices and the manifest of tars that are already fit; the tars are only read.

    Fit means: uncompressed; each sample one `.jpg` (or `.jpeg`) and one 8-bit grey `.png` of its size holding known
    codes, or such a `.ppm` and `.pgm`; keys of letters, digits, _ and -, each once. Splits go by the files' names
    (`train-0.tar`); a tar whose name says none is `train`. With a manifest already there, only indices that do not
    fit are written anew.

    Args:
        folder: where the tars are.
        classes: codes that masks may hold; None for Oxford's, or the manifest's own.
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
    if planned:
        planned(sum(map(len, scanned.values())))
    if (folder / MANIFEST_NAME).exists():
        return _repair(folder, scanned, progress)
    survey = _Survey(folder, classes or OXFORD)
    for path, entries in scanned.items():
        survey.look_at(path, entries, progress)
    manifest = survey.manifest(scanned)
    for path, entries in scanned.items():
        write_index(path.with_name(index_name(path.name)), entries)
    manifest.save(folder)
    return manifest


def _repair(folder: Path, scanned: dict[Path, list[Entry]], progress: Callable[[int], None] | None) -> Manifest:
    manifest = Manifest.load(folder)
    for split in manifest.splits.values():
        for shard in split.shards:
            entries = scanned.get(folder / shard.name)
            if entries is None or len(entries) != shard.samples:
                raise PetsegError(f"{folder / shard.name} is not what the manifest says: copy or pack it again.")
            index = folder / index_name(shard.name)
            if not index.is_file() or index.read_bytes() != format_index(entries):
                write_index(index, entries)
            if progress:
                progress(len(entries))
    return manifest


class _Survey:
    """What is learned of the tars on the way."""

    def __init__(self, folder: Path, classes: ClassTable) -> None:
        self._folder, self._classes = folder, classes
        self._extensions: tuple[str, str] | None = None
        self._keys: dict[str, Path] = {}
        self._stats: dict[Path, ShardStats] = {}
        self._digest = hashlib.sha256()

    def look_at(self, path: Path, entries: list[Entry], progress: Callable[[int], None] | None) -> None:
        """Check and count the samples of one tar."""
        if not entries:
            raise PetsegError(f"{path} holds no sample: remove it.")
        stats = self._stats[path] = ShardStats(name=path.name)
        with path.open("rb") as file:
            for entry in entries:
                image, mask = self._parts(path, entry, file.read, file.seek)
                try:
                    picture, counts = check_sample(image, mask, {*self._classes.codes, *self._classes.ignored})
                except DecodeError as error:
                    raise self._unfit(path, entry.key, str(error)) from error
                if entry.key in self._keys:
                    raise self._unfit(path, entry.key, f"its key stands in {self._keys[entry.key].name} too")
                self._keys[entry.key] = path
                stats.add(picture, counts, progressive=frame_marker(image) == 0xC2)
                self._digest.update(f"{entry.key} {hashlib.sha256(image + mask).hexdigest()}\n".encode())
                if progress:
                    progress(1)

    def manifest(self, scanned: dict[Path, list[Entry]]) -> Manifest:
        """The manifest of all tars."""
        splits: dict[str, list[ShardInfo]] = {}
        for path, entries in scanned.items():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            info = ShardInfo(name=path.name, samples=len(entries), bytes=path.stat().st_size, sha256=digest)
            splits.setdefault(split_of(path.name), []).append(info)
        every = list(self._stats.values())
        mean, std = mean_std([stats for stats in every if split_of(stats.name) == "train"] or every)
        extensions = self._extensions or ("jpg", "png")
        return Manifest(
            splits={
                name: Split(samples=sum(i.samples for i in splits[name]), shards=tuple(splits[name]))
                for name in ("train", "val", "test")
                if name in splits
            },
            classes=self._classes,
            encoding=Encoding(short_side=0, quality=0, image=extensions[0], mask=extensions[1]),
            max_height=max(stats.max_height for stats in every),
            max_width=max(stats.max_width for stats in every),
            pixel_counts=code_counts(every, self._classes),
            mean=mean,
            std=std,
            progressive=sum(stats.progressive for stats in every),
            source_digest=self._digest.hexdigest(),
        )

    def _parts(
        self, path: Path, entry: Entry, read: Callable[[int], bytes], seek: Callable[[int], int]
    ) -> tuple[bytes, bytes]:
        if not _KEY.fullmatch(entry.key):
            raise self._unfit(path, entry.key, "its key holds other characters than letters, digits, _ and -")
        extensions = sorted(c.extension for c in entry.components)
        found = next((pair for pair in _MEMBERS if sorted(pair) == extensions), None)
        if found is None:
            raise self._unfit(path, entry.key, f"its members are {', '.join(extensions)}, not one jpg and one png")
        if self._extensions is None:
            self._extensions = found
        elif self._extensions != found:
            raise self._unfit(path, entry.key, f"its image is a .{found[0]}, others are .{self._extensions[0]}")
        parts = {}
        for component in entry.components:
            seek(component.offset)
            parts[component.extension] = read(component.size)
        return parts[found[0]], parts[found[1]]

    def _unfit(self, path: Path, key: str, why: str) -> PetsegError:
        return PetsegError(
            f"{path}: sample {key} does not fit: {why}; repack the tars: petseg-shard 'tars:{self._folder}/*.tar' OUT"
        )


def split_of(name: str) -> str:
    """The split that a tar goes to: as its name says, `train` where that says none or `trainval`."""
    split = named_split(name)
    return "train" if split in {None, TRAINVAL} else str(split)
