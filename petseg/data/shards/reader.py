"""Encoded samples by index: one pread each, from any thread."""

from __future__ import annotations

import bisect
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from petseg.data.decode.images import decode_image
from petseg.data.decode.masks import DecodeError, decode_mask
from petseg.data.shards.hashes import check_hashes
from petseg.data.shards.index import index_name, read_index, read_spans
from petseg.data.shards.manifest import Manifest
from petseg.errors import PetsegError
from petseg.system import open_file, read_at

T = TypeVar("T")

MAX_OPEN = 256
"""Tars that stay open; a set of more shards opens the others read by read, well below any limit of descriptors."""


class ShardReader:
    """The samples of one split, by their index in the manifest's order.

    Reads go through pread and never a memory map: a tar that shrinks under a map is a SIGBUS, here it is an error.

    Args:
        folder: shard folder.
        manifest: its manifest.
        split: name of a split.
        verify: check the tars' hashes, once after each change (`check_hashes`), so that no decoder is trusted to notice
            a damaged file.
        share: of the checking, among the ranks of one machine.

    Raises:
        PetsegError: no such split, a tar or index that is missing, or one that is not what the manifest says.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, *, verify: bool = True, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.folder = folder
        shards = manifest.split(split).shards
        self._paths = [folder / shard.name for shard in shards]
        self._starts = [0]
        spans = []
        for number, shard in enumerate(shards):
            self._check_size(self._paths[number], shard.bytes)
            index = self._index(number)
            found = read_spans(index, manifest.encoding.image, manifest.encoding.mask)
            if len(found) != shard.samples:
                raise PetsegError(
                    f"{index} lists {len(found)} samples, the manifest says {shard.samples}: run petseg index "
                    f"{folder}, or pack again."
                )
            beyond = np.flatnonzero((found[:, ::2] + found[:, 1::2]).max(1, initial=0) > shard.bytes)
            if len(beyond):
                key = read_index(index)[beyond[0]].key
                raise PetsegError(f"{index}: sample {key} lies beyond the end of its tar: run petseg index.")
            spans.append(found)
            self._starts.append(self._starts[-1] + len(found))
        if verify:
            check_hashes(folder, shards, share=share)
        self._spans = np.concatenate(spans) if spans else np.zeros((0, 4), np.int64)
        self._keys: tuple[int, list[str]] = (-1, [])  # of the shard that was asked for last
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __len__(self) -> int:
        return len(self._spans)

    def key(self, index: int) -> str:
        """The key of a sample, looked up in its shard's index."""
        shard = self._shard(index)
        known, keys = self._keys
        if known != shard:
            keys = [entry.key for entry in read_index(self._index(shard))]
            self._keys = shard, keys
        return keys[index - self._starts[shard]]

    def path(self, index: int) -> Path:
        """The tar that a sample is in."""
        return self._paths[self._shard(index)]

    def where(self, index: int) -> str:
        """`TAR: sample KEY`, for messages."""
        return f"{self.path(index)}: sample {self.key(index)}"

    def read(self, index: int) -> tuple[memoryview, memoryview]:
        """Encoded bytes of a sample's image and mask.

        Raises:
            PetsegError: the tar went away or ends too early.
            ValueError: the reader is closed.
        """
        return self._read(index, self._shard(index), self._spans[index].tolist())

    def each(self, indices: np.ndarray, use: Callable[[int, memoryview, memoryview], T], start: int = 0) -> list[T]:
        """Read samples and give each to `use(row, image, mask)`, encoded, rows counted from `start`; its results.

        Raises:
            PetsegError: as `read`; or `use` raised a `DecodeError`, with the sample's name.
        """
        results = []
        shards = (np.searchsorted(self._starts, indices, "right") - 1).tolist()
        spans = self._spans[indices].tolist()
        for row, index in enumerate(indices.tolist()):
            image, mask = self._read(index, shards[row], spans[row])
            try:
                results.append(use(start + row, image, mask))
            except DecodeError as fault:
                raise self.bad_sample(index, fault) from fault
        return results

    def decoded(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A sample in full: (image u8[H, W, 3], codes u8[H, W]).

        Raises:
            PetsegError: as `read`, or the sample is damaged.
        """

        def decode(_: int, image: memoryview, mask: memoryview) -> tuple[np.ndarray, np.ndarray]:
            picture, codes = decode_image(image), decode_mask(mask)
            if picture.shape[:2] != codes.shape:
                height, width = picture.shape[:2]
                raise DecodeError(f"mask is {codes.shape[1]}x{codes.shape[0]}, its image {width}x{height}")
            return picture, codes

        return self.each(np.array([index]), decode)[0]

    def bad_sample(self, index: int, fault: DecodeError) -> PetsegError:
        """The sentence for a sample that cannot be decoded."""
        return PetsegError(f"{self.where(index)}: {fault}; run `petseg verify {self.folder}` and pack again.")

    def close(self) -> None:
        """Close the files. Reads that are under way in other threads must have ended."""
        with self._lock:
            self._closed = True
            files, self._files = self._files, {}
        for file in files.values():
            os.close(file)

    def _read(self, index: int, shard: int, span: list[int]) -> tuple[memoryview, memoryview]:
        image_at, image_size, mask_at, mask_size = span
        start = min(image_at, mask_at)
        length = max(image_at + image_size, mask_at + mask_size) - start
        try:
            data = self._pread(shard, length, start)
        except OSError as error:
            raise PetsegError(f"{self.where(index)} cannot be read ({error.strerror}).") from error
        if len(data) != length:
            raise PetsegError(f"{self._paths[shard]} is shorter than the manifest says: copy or pack it again.")
        view = memoryview(data)
        image, mask = image_at - start, mask_at - start
        return view[image : image + image_size], view[mask : mask + mask_size]

    def _shard(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1

    def _index(self, shard: int) -> Path:
        return self.folder / index_name(self._paths[shard].name)

    def _pread(self, shard: int, length: int, start: int) -> bytes:
        file = self._files.get(shard)
        if file is None:
            if len(self._paths) > MAX_OPEN and len(self._files) >= MAX_OPEN:
                file = open_file(self._paths[shard])
                try:
                    return read_at(file, length, start)
                finally:
                    os.close(file)
            file = self._open(shard)
        return read_at(file, length, start)

    def _open(self, shard: int) -> int:
        with self._lock:
            if self._closed:
                raise ValueError("this reader is closed")
            if shard not in self._files:
                self._files[shard] = open_file(self._paths[shard])
            return self._files[shard]

    @staticmethod
    def _check_size(path: Path, expected: int) -> None:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise PetsegError(f"{path} cannot be read ({error.strerror}): copy it again, or pack again.") from error
        if size != expected:
            which = "shorter" if size < expected else "longer"
            raise PetsegError(
                f"{path} is {which} than the manifest says ({size} bytes instead of {expected}): copy or pack it again."
            )
