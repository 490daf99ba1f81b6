"""Tars made by other tools: an index beside each and a manifest, without rewriting them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from petseg.classes import OXFORD, ClassTable
from petseg.data.decode.masks import DecodeError
from petseg.data.shards.index import Entry, format_index, index_name, scan_tar, write_index
from petseg.data.shards.manifest import Encoding, Manifest, ShardInfo, Split
from petseg.data.shards.normalise import frame_marker
from petseg.data.shards.verify import check_sample
from petseg.data.sources import TRAINVAL
from petseg.data.sources.files import MANIFEST_NAME, named_split, refuse_unfinished
from petseg.errors import PetsegError

_KEY = re.compile(r"[A-Za-z0-9_-]+")


def adopt(
    folder: Path,
    classes: ClassTable | None,
    *,
    progress: Callable[[int], None] | None = None,
    planned: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the indices and the manifest of tars that are already fit; the tars are only read.

    Fit means: uncompressed; each sample one `.jpg` (or `.jpeg`) and one 8-bit grey `.png` of its size holding known
    codes; keys of letters, digits, _ and -, each once. Splits go by the files' names (`train-0.tar`); a tar whose name
    says none is `train`. With a manifest already there, only indices that do not fit are written anew.

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
        self._counts = np.zeros(256, dtype=np.int64)
        self._height = self._width = self._progressive = 0
        self._sums: dict[str, list[int]] = {}
        self._digest = hashlib.sha256()

    def look_at(self, path: Path, entries: list[Entry], progress: Callable[[int], None] | None) -> None:
        """Check and count the samples of one tar."""
        if not entries:
            raise PetsegError(f"{path} holds no sample: remove it.")
        sums = self._sums.setdefault(split_of(path.name), [0] * 7)
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
                self._counts += counts
                self._height, self._width = max(self._height, picture.shape[0]), max(self._width, picture.shape[1])
                values = picture.reshape(-1, 3).astype(np.int64)
                self._progressive += frame_marker(image) == 0xC2
                sums[0] += len(values)
                for channel in range(3):
                    sums[1 + channel] += int(values[:, channel].sum())
                    sums[4 + channel] += int((values[:, channel] ** 2).sum())
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
        train = self._sums.get("train") or [sum(column) for column in zip(*self._sums.values(), strict=True)]
        mean = [train[1 + c] / train[0] for c in range(3)]
        std = [max((train[4 + c] / train[0] - mean[c] ** 2), 1.0) ** 0.5 for c in range(3)]
        extensions = self._extensions or ("jpg", "png")
        return Manifest(
            splits={
                name: Split(samples=sum(i.samples for i in splits[name]), shards=tuple(splits[name]))
                for name in ("train", "val", "test")
                if name in splits
            },
            classes=self._classes,
            encoding=Encoding(short_side=0, quality=0, image=extensions[0], mask=extensions[1]),
            max_height=self._height,
            max_width=self._width,
            pixel_counts={code: int(self._counts[code]) for code in (*self._classes.codes, *self._classes.ignored)},
            mean=(round(mean[0] / 255, 6), round(mean[1] / 255, 6), round(mean[2] / 255, 6)),
            std=(round(std[0] / 255, 6), round(std[1] / 255, 6), round(std[2] / 255, 6)),
            progressive=self._progressive,
            source_digest=self._digest.hexdigest(),
        )

    def _parts(
        self, path: Path, entry: Entry, read: Callable[[int], bytes], seek: Callable[[int], int]
    ) -> tuple[bytes, bytes]:
        if not _KEY.fullmatch(entry.key):
            raise self._unfit(path, entry.key, "its key holds other characters than letters, digits, _ and -")
        extensions = sorted(c.extension for c in entry.components)
        if extensions not in (["jpg", "png"], ["jpeg", "png"]):
            raise self._unfit(path, entry.key, f"its members are {', '.join(extensions)}, not one jpg and one png")
        if self._extensions is None:
            self._extensions = (extensions[0], extensions[1])
        elif self._extensions != (extensions[0], extensions[1]):
            raise self._unfit(path, entry.key, f"its image is a .{extensions[0]}, others are .{self._extensions[0]}")
        parts = []
        for component in sorted(entry.components):
            seek(component.offset)
            parts.append(read(component.size))
        return parts[0], parts[1]

    def _unfit(self, path: Path, key: str, why: str) -> PetsegError:
        return PetsegError(
            f"{path}: sample {key} does not fit: {why}; repack the tars: petseg-shard 'tars:{self._folder}/*.tar' OUT"
        )


def split_of(name: str) -> str:
    """The split that a tar goes to: as its name says, `train` where that says none or `trainval`."""
    split = named_split(name)
    return "train" if split in {None, TRAINVAL} else str(split)
