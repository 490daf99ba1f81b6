"""Encoded samples by index: one pread each, from any thread."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from petseg.data.decode.image_files import DecodeError
from petseg.data.decode.images import Chroma, decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.shards.columns import ShardColumns
from petseg.data.shards.files import Span, TarFile, TarFiles, tar_file
from petseg.data.shards.hashes import check_hashes, refused, remembered, unsound_shards
from petseg.data.shards.index import index_name, read_key
from petseg.data.shards.manifest import COLUMNS_FROM, Manifest
from petseg.data.shards.place import Place, RemoteShards
from petseg.data.shards.spans import COLUMNS, SpanTable, read_spans
from petseg.data.shards.stage import Stage
from petseg.data.shards.verify import check_sample
from petseg.errors import PetsegError

T = TypeVar("T")

OnBad = Literal["stop", "skip"]
"""What to do about damaged samples."""

_MOST_READS = 10

MOST_BAD = 0.1
"""Largest share of a split (or one sample of it) that is skipped: beyond it, it is more than a few bits."""


class _Later(NamedTuple):
    """How shards are opened that are opened when they are first used."""

    verify: bool
    known: set[str]
    """Record of the shards whose hashes were checked."""


class ShardReader:
    """The samples of one split, by their index in the manifest's order.

    Args:
        folder: shard folder, or one in a store: then a shard is fetched when it is first read.
        manifest: its manifest.
        split: name of a split.
        verify: check the tars' hashes, once after each change (`check_hashes`), so that no decoder is trusted to notice
            a damaged file; of more than `COLUMNS_FROM` shards, each when it is first used.
        share: of the checking, among the ranks of one machine.
        on_bad: what a tar with other bytes than the manifest says leads to. `stop`: an error. `skip`: all its samples
            are decoded, and those that are damaged are listed in `bad`; every rank does so for itself.
        chroma: how JPEGs are decoded, here and by the engines that read through this.

    Raises:
        PetsegError: no such split, a tar or index that is missing, or one that is not what the manifest says; under
            `skip`, more than `MOST_BAD` of the split damaged.
    """

    def __init__(
        self,
        folder: Place,
        manifest: Manifest,
        split: str,
        *,
        verify: bool = True,
        share: tuple[int, int] = (0, 1),
        on_bad: OnBad = "stop",
        chroma: Chroma = "fancy",
    ) -> None:
        if on_bad == "skip" and not verify:
            raise PetsegError("--on-bad-sample skip goes by the shards' hashes: leave --no-verify out.")
        self.folder = folder
        self.chroma = chroma
        shards = self._shards = manifest.split(split).shards
        self._components = manifest.encoding.image, manifest.encoding.mask
        self._starts = np.concatenate([[0], np.cumsum([shard.samples for shard in shards])]).astype(np.int64)
        self._tars: list[TarFile | None] = [None] * len(shards)
        self._files = TarFiles()
        self.bad: tuple[int, ...] = ()
        """Samples that are damaged, where they are skipped."""
        self.stage: Stage | None = None
        """Where shards of a store are fetched to."""
        self._later: _Later | None = None
        """Of a set of very many shards, which are opened and checked when they are first used."""
        samples = int(self._starts[-1])
        large = isinstance(shards, ShardColumns) or len(shards) > COLUMNS_FROM
        name = f"{folder.resolve()} {split} {manifest.digest}" if isinstance(folder, Path) and large else ""
        self._table = SpanTable(samples, name)
        if isinstance(folder, RemoteShards):
            self.stage = Stage(folder, shards)  # hashed while they come, so there is nothing to check
            return
        if large and on_bad == "stop":
            self._later = _Later(verify, remembered(folder) if verify else set())
            self._check_sizes(folder, ShardColumns.of(shards))
            return
        for number, shard in enumerate(shards):
            self._open(number, self._found(folder / shard.name, shard.bytes, exactly=on_bad == "stop"))
        if verify and on_bad == "stop":
            check_hashes(folder, shards, share=share)
        if on_bad == "skip":
            self.bad = self._damaged([shards.index(shard) for shard in unsound_shards(folder, shards)], manifest)

    def __len__(self) -> int:
        return len(self._table.rows)

    def key(self, index: int) -> str:
        """The key of a sample, looked up in its shard's index."""
        shard = self._shard(index)
        self.take([shard], wait=True)
        return read_key(self._index(shard), int(self._table.rows[index, COLUMNS - 1]))

    def path(self, index: int) -> Path | str:
        """The tar that a sample is in, or its address."""
        name = self._shards[self._shard(index)].name
        return self.folder / name if isinstance(self.folder, Path) else f"{self.folder}/{name}"

    def where(self, index: int) -> str:
        """`TAR: sample KEY`, for messages."""
        return f"{self.path(index)}: sample {self.key(index)}"

    def read(self, index: int) -> tuple[memoryview, memoryview]:
        """Encoded bytes of a sample's image and mask.

        Raises:
            PetsegError: the tar went away or ends too early.
            ValueError: the reader is closed.
        """
        return self._read(self.spans(np.array([index]))[0])

    def spans(self, indices: np.ndarray) -> list[Span]:
        """Where the samples i64[n] are; shards of a store are waited for.

        Raises:
            PetsegError: one of them cannot be had.
        """
        shards = self.shards_of(indices).tolist()
        if self.stage or self._later:
            self.take(set(shards), wait=True)
        tars = self._tars
        return [
            (index, tars[shard], *span)
            for index, shard, span in zip(indices.tolist(), shards, self._table.rows[indices, :4].tolist(), strict=True)
        ]

    def shards_of(self, indices: np.ndarray) -> np.ndarray:
        """i64[n]: the numbers of the shards that samples i64[n] are in."""
        return np.searchsorted(self._starts, indices, "right") - 1

    def take(self, numbers: Collection[int], *, wait: bool) -> bool:
        """Have shards of a store on this machine until they are released; whether all of them are there.

        Args:
            numbers: of the shards.
            wait: until they are.

        Raises:
            PetsegError: one of them cannot be had, or is not what the manifest says.
        """
        if self._later:
            self._open_now([number for number in numbers if self._tars[number] is None], self._later)
        if self.stage is None:
            return True
        there = self.stage.take(numbers, wait=wait)
        for number in self.stage.held().intersection(numbers):
            if self._tars[number] is None:
                self._open(number, tar_file(str(self.stage.path(number).absolute()), self.stage.stat(number)))
        return there

    def release(self, numbers: Collection[int]) -> None:
        """Release remote shards: they stay until others need the space."""
        if self.stage:
            self.stage.release(numbers)
            for number in numbers:
                self._tars[number] = None

    def each(self, indices: np.ndarray, use: Callable[[int, memoryview, memoryview], T], start: int = 0) -> list[T]:
        """Read samples and give each to `use(row, image, mask)`, encoded, rows counted from `start`; its results.

        Raises:
            PetsegError: as `read`; or `use` raised a `DecodeError`, with the sample's name.
        """
        results = []
        for row, span in enumerate(self.spans(indices), start):
            image, mask = self._read(span)
            try:
                results.append(use(row, image, mask))
            except DecodeError as fault:
                raise self.fault(span[0], fault) from fault
        return results

    def decoded(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A sample in full: (image u8[H, W, 3], codes u8[H, W]).

        Raises:
            PetsegError: as `read`, or the sample is damaged.
        """

        def decode(_: int, image: memoryview, mask: memoryview) -> tuple[np.ndarray, np.ndarray]:
            pixels, codes = decode_image(image, self.chroma), decode_mask(mask)
            if pixels.shape[:2] != codes.shape:
                height, width = pixels.shape[:2]
                raise DecodeError(f"mask is {codes.shape[1]}x{codes.shape[0]}, its image {width}x{height}")
            return pixels, codes

        return self.each(np.array([index]), decode)[0]

    def mask(self, index: int) -> np.ndarray:
        """The codes of a sample in full, u8[H, W]; its image is not decoded.

        Raises:
            PetsegError: as `read`, or the mask is damaged.
        """
        return self.each(np.array([index]), lambda _row, _image, mask: decode_mask(mask))[0]

    def fault(self, index: int, fault: OSError | EOFError | DecodeError) -> PetsegError:
        """The sentence for a sample that cannot be read or decoded."""
        if isinstance(fault, EOFError):
            return PetsegError(f"{self.path(index)} is shorter than the manifest says: copy or pack it again.")
        if isinstance(fault, OSError) and fault.errno == errno.ESTALE:
            return PetsegError(
                f"{self.path(index)} is another file than when it was opened: make the loader again, and not while the "
                "shards are packed or copied."
            )
        if isinstance(fault, OSError):
            return PetsegError(f"{self.where(index)} cannot be read ({fault.strerror}).")
        return PetsegError(f"{self.where(index)}: {fault}; run `petseg verify {self.folder}` and pack again.")

    def check(self, failure: tuple[int, OSError | EOFError | DecodeError] | None) -> None:
        """Raise the sentence for the sample that failed, if one did.

        Raises:
            PetsegError: see `fault`.
        """
        if failure is not None:
            raise self.fault(*failure) from failure[1]

    def refuse_too_many(self, bad: Sequence[int]) -> None:
        """Refuse to skip more than `MOST_BAD` of the split.

        Raises:
            PetsegError: it is more.
        """
        if len(bad) > max(1, MOST_BAD * len(self)):
            raise PetsegError(
                f"--on-bad-sample skip: {len(bad)} of {len(self)} samples are damaged, more than "
                f"{100 * MOST_BAD:.0f}%, the first of them {self.where(bad[0])}: copy or pack the shards again."
            )

    def close(self) -> None:
        """Close the files. Reads that are under way in other threads must have ended."""
        self._files.close()
        self._table.close()
        if self.stage:
            self.stage.close()

    def _check_sizes(self, folder: Path, shards: ShardColumns) -> None:
        """Check that all tars exist, and are as large as the manifest says.

        Raises:
            PetsegError: one is missing, or of another size.
        """
        with os.scandir(folder) as entries:
            found = {os.fsencode(entry.name): entry.stat().st_size for entry in entries}
        for name, size in zip(shards.names.tolist(), shards.sizes.tolist(), strict=True):
            if found.get(name) != size:
                self._found(folder / os.fsdecode(name), size, exactly=True)

    def _open_now(self, numbers: Sequence[int], later: _Later) -> None:
        """Open shards, and check their hashes.

        Raises:
            PetsegError: one is not what the manifest says.
        """
        if not numbers:
            return
        assert isinstance(self.folder, Path)
        shards = [self._shards[number] for number in numbers]
        if later.verify:
            for shard in unsound_shards(self.folder, shards, later.known):
                raise refused(self.folder, shard)
        for number, shard in zip(numbers, shards, strict=True):
            self._open(number, self._found(self.folder / shard.name, shard.bytes, exactly=True))

    def _damaged(self, shards: list[int], manifest: Manifest) -> tuple[int, ...]:
        known = {*manifest.classes.codes, *manifest.classes.ignored}
        bad: list[int] = []
        for shard in shards:
            for index in range(*self._starts[shard : shard + 2].tolist()):
                try:
                    image, mask = self.read(index)
                    check_sample(bytes(image), bytes(mask), known)
                except (PetsegError, DecodeError):
                    bad.append(index)
        self.refuse_too_many(bad)
        return tuple(bad)

    def _read(self, span: Span) -> tuple[memoryview, memoryview]:
        for tries in range(_MOST_READS):
            try:
                return self._files.read(span)
            except (OSError, EOFError) as fault:
                # Another thread may have let the shard go for one of its own.
                if self.stage is None or isinstance(fault, EOFError) or tries == _MOST_READS - 1:
                    raise self.fault(span[0], fault) from fault
                (span,) = self.spans(np.array([span[0]]))
        raise AssertionError("the last try returns or raises")

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, "right")) - 1

    def _index(self, shard: int) -> Path:
        name = index_name(self._shards[shard].name)
        return self.folder / name if isinstance(self.folder, Path) else self._staged.index(shard)

    @property
    def _staged(self) -> Stage:
        assert self.stage is not None
        return self.stage

    def _open(self, number: int, tar: TarFile) -> None:
        """Note where a shard's samples are.

        Raises:
            PetsegError: its index is not what the manifest says.
        """
        shard, index = self._shards[number], self._index(number)
        first, end = self._starts[number : number + 2].tolist()
        if self._table.known(first, end):
            self._tars[number] = tar
            return
        found = read_spans(index, *self._components)
        if len(found) != shard.samples:
            raise PetsegError(
                f"{index} lists {len(found)} samples, the manifest says {shard.samples}: run petseg index "
                f"{self.folder}, or pack again."
            )
        beyond = np.flatnonzero((found[:, :4:2] + found[:, 1:4:2]).max(1, initial=0) > shard.bytes)
        if len(beyond):
            key = read_key(index, int(found[beyond[0], 4]))
            raise PetsegError(f"{index}: sample {key} lies beyond the end of its tar: run petseg index.")
        self._table.fill(first, found)
        self._tars[number] = tar  # last: other threads may read the rows from now on

    @staticmethod
    def _found(path: Path, expected: int, *, exactly: bool) -> TarFile:
        try:
            stat = path.stat()
        except OSError as error:
            raise PetsegError(f"{path} cannot be read ({error.strerror}): copy it again, or pack again.") from error
        if exactly and stat.st_size != expected:
            which = "shorter" if stat.st_size < expected else "longer"
            raise PetsegError(
                f"{path} is {which} than the manifest says ({stat.st_size} bytes instead of {expected}): copy or pack "
                "it again."
            )
        # Absolute, for processes that may have been started in another folder.
        return tar_file(str(path.absolute()), stat)
