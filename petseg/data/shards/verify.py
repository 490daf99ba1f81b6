"""Whether shards are what their manifest says, down to the last pixel."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from petseg.data.decode.images import decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.decode.pictures import DecodeError, PictureError, exif_orientation, opened
from petseg.data.shards.histogram import histogram
from petseg.data.shards.index import format_index, index_name
from petseg.data.shards.manifest import Manifest, ShardInfo
from petseg.data.shards.place import Place
from petseg.data.shards.stage import Stage
from petseg.data.tar import Entry, scan_tar
from petseg.errors import PetsegError
from petseg.system import read_at


def verify(folder: Place, manifest: Manifest, *, progress: Callable[[int], None] | None = None) -> list[str]:
    """Check every tar: size, SHA-256, index against tar, that every sample decodes in full, and its codes.

    Args:
        folder: shard folder.
        manifest: its manifest.
        progress: called with the number of samples checked since the last call.

    Returns:
        One clause a finding, naming the file and the sample; empty if all is well.
    """
    problems: list[str] = []
    keys: set[str] = set()
    counts = np.zeros(256, dtype=np.int64)
    for split in manifest.splits.values():
        with _files_of(folder, split.shards) as files:
            for shard, path, index in files:
                problems += _check_shard(path, index, shard, manifest, keys, counts, progress or (lambda _: None))
    expected = {code: n for code, n in manifest.pixel_counts.items() if n}
    found = {int(code): int(counts[code]) for code in np.flatnonzero(counts)}
    if not problems and found != expected:
        problems.append(f"{folder}: the masks hold {found} pixels by code, the manifest says {expected}")
    return problems


def check_sample(image: bytes, mask: bytes, known: set[int]) -> tuple[np.ndarray, np.ndarray]:
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
    picture, codes = decode_image(image), decode_mask(mask)
    try:
        with opened(image) as header:
            orientation = exif_orientation(header)
    except PictureError as error:
        raise DecodeError(f"image {error}") from error
    if orientation != 1:
        raise DecodeError(f"image is turned by its EXIF orientation ({orientation}), which loaders do not read")
    if picture.shape[:2] != codes.shape:
        raise DecodeError(f"mask is {codes.shape[1]}x{codes.shape[0]}, its image {picture.shape[1]}x{picture.shape[0]}")
    counts = histogram(codes)[0]
    unknown = sorted(set(np.flatnonzero(counts).tolist()) - known)
    if unknown:
        raise DecodeError(f"mask holds unknown codes {', '.join(map(str, unknown[:5]))}")
    return picture, counts


@contextlib.contextmanager
def _files_of(folder: Place, shards: tuple[ShardInfo, ...]) -> Iterator[Iterator[tuple[ShardInfo, Path, Path]]]:
    """Every shard with its tar and index, one after the other; those of a store come while one is checked."""
    if isinstance(folder, Path):
        yield ((shard, folder / shard.name, folder / index_name(shard.name)) for shard in shards)
        return
    stage = Stage(folder, shards)
    stage.follow(range(len(shards)))

    def fetched() -> Iterator[tuple[ShardInfo, Path, Path]]:
        for number, shard in enumerate(shards):
            stage.take([number], wait=True)
            yield shard, stage.path(number), stage.index(number)
            stage.release([number])
            stage.reach(number + 1)

    try:
        yield fetched()
    finally:
        stage.close()


def _check_shard(
    path: Path,
    index: Path,
    shard: ShardInfo,
    manifest: Manifest,
    keys: set[str],
    counts: np.ndarray,
    progress: Callable[[int], None],
) -> list[str]:
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
    known = {*manifest.classes.codes, *manifest.classes.ignored}
    with path.open("rb") as file:
        for entry in entries:
            try:
                image, mask = _parts(file.fileno(), entry, manifest)
                _, found = check_sample(image, mask, known)
                counts += found
            except (DecodeError, OSError) as error:
                problems.append(f"{path}: sample {entry.key}: {error}")
            if entry.key in keys:
                problems.append(f"{path}: sample {entry.key}: its key stands twice")
            keys.add(entry.key)
            progress(1)
    return problems


def _parts(file: int, entry: Entry, manifest: Manifest) -> tuple[bytes, bytes]:
    by_extension = {c.extension: c for c in entry.components}
    try:
        image, mask = by_extension[manifest.encoding.image], by_extension[manifest.encoding.mask]
    except KeyError as error:
        raise DecodeError(f"it has no .{error.args[0]}") from None
    return read_at(file, image.size, image.offset), read_at(file, mask.size, mask.offset)
