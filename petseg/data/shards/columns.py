"""The shards of a split as columns: what a set of hundreds of thousands needs in place of as many objects."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from petseg.errors import PetsegError


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One tar file."""

    name: str
    """File name inside the shard folder, such as `train-000000.tar`; its index is `NAME.idx`."""
    samples: int
    """How many samples it holds."""
    bytes: int
    """Size of the tar in bytes."""
    sha256: str
    """SHA-256 of the tar, hexadecimal."""


_NAMES = ("names", "samples", "bytes", "sha256")


class ShardColumns(Sequence[ShardInfo]):
    """A sequence of `ShardInfo`, each made when it is asked for.

    Args:
        names: S[n], file names in UTF-8.
        samples: i64[n].
        sizes: i64[n], bytes of the tars.
        hashes: u8[n, 32], their SHA-256.
    """

    def __init__(self, names: np.ndarray, samples: np.ndarray, sizes: np.ndarray, hashes: np.ndarray) -> None:
        self.names, self.samples, self.sizes, self.hashes = names, samples, sizes, hashes

    @classmethod
    def of(cls, shards: Sequence[ShardInfo]) -> ShardColumns:
        """Columns of some shards."""
        if isinstance(shards, ShardColumns):
            return shards
        hashes = b"".join(bytes.fromhex(shard.sha256) for shard in shards)
        return cls(
            np.asarray([shard.name.encode() for shard in shards], "S"),
            np.asarray([shard.samples for shard in shards], np.int64),
            np.asarray([shard.bytes for shard in shards], np.int64),
            np.frombuffer(hashes, np.uint8).reshape(len(shards), 32),
        )

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, at: int) -> ShardInfo: ...

    @overload
    def __getitem__(self, at: slice) -> ShardColumns: ...

    def __getitem__(self, at: int | slice) -> ShardInfo | ShardColumns:
        if isinstance(at, slice):
            return ShardColumns(self.names[at], self.samples[at], self.sizes[at], self.hashes[at])
        return ShardInfo(
            name=self.names[at].decode(),
            samples=int(self.samples[at]),
            bytes=int(self.sizes[at]),
            sha256=self.hashes[at].tobytes().hex(),
        )

    def __iter__(self) -> Iterator[ShardInfo]:
        return (self[at] for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(ShardInfo.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # a list has none either


def to_bytes(splits: Mapping[str, ShardColumns]) -> bytes:
    """A NumPy archive of the splits' columns (`train/names` and so on); equal for equal columns."""
    arrays: dict[str, Any] = {}
    for name, shards in sorted(splits.items()):
        columns = (shards.names, shards.samples, shards.sizes, shards.hashes)
        arrays |= {f"{name}/{each}": column for each, column in zip(_NAMES, columns, strict=True)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # whose entries have no times
    return buffer.getvalue()


def from_bytes(data: bytes, name: str) -> ShardColumns:
    """The columns of one split.

    Raises:
        PetsegError: they are damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names, samples, sizes, hashes = (
                arrays[f"{name}/{each}"] for each in ("names", "samples", "bytes", "sha256")
            )
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise PetsegError(f"its columns are damaged ({error}): pack or index again.") from error
    n = len(names)
    fit = names.dtype.kind == "S" and samples.shape == sizes.shape == (n,) and hashes.shape == (n, 32)
    if not fit or samples.dtype != np.int64 or sizes.dtype != np.int64 or hashes.dtype != np.uint8:
        raise PetsegError("its columns are of other shapes or types than columns of shards have: pack or index again.")
    return ShardColumns(names, samples, sizes, hashes)
