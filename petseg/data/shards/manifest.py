"""`manifest.json`: what a folder of shards holds, as data that never depends on when or by whom it was made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petseg.classes import ClassTable
from petseg.data.decode.rgb import AS_IT_IS, Tones
from petseg.data.objects import ObjectMissing
from petseg.data.shards.place import RemoteShards, place_of
from petseg.data.sources import Rejected
from petseg.data.sources.files import MANIFEST_NAME, refuse_unfinished
from petseg.errors import PetsegError
from petseg.system import write_atomic

FORMAT = 1
"""Version of the manifest that this petseg writes, and the newest that it reads."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The shards of one split, in the order that gives samples their indices."""

    samples: int
    shards: tuple[ShardInfo, ...]

    @property
    def sizes(self) -> list[int]:
        """Samples of each shard, in order."""
        return [shard.samples for shard in self.shards]


ENCODINGS = {"jpeg": ("jpg", "png"), "ppm": ("ppm", "pgm")}
"""Ways to store samples, and the extensions of image and mask: JPEG and PNG; or pixels as they are, as PPM and PGM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How images and masks were encoded."""

    short_side: int
    """Short side in pixels that images were reduced to; 0 means original sizes (and original bytes where sound)."""
    quality: int
    """JPEG quality of what petseg encoded, 1 to 100; 0 where it encoded none."""
    image: str = "jpg"
    """Extension of the image component."""
    mask: str = "png"
    """Extension of the mask component."""
    tones: Tones = AS_IT_IS
    """What became of images of more than 8 bits or three bands."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Manifest:
    """Everything that is known about a folder of shards. Equal data gives equal bytes.

    Example:
        >>> manifest = Manifest.load(Path("shards/oxford"))  # doctest: +SKIP
        >>> manifest.splits["train"].samples, manifest.classes.names, manifest.mean  # doctest: +SKIP
        (3312, ('pet', 'background', 'border'), (0.481, 0.449, 0.396))
    """

    splits: dict[str, Split]
    classes: ClassTable
    encoding: Encoding
    max_height: int
    """Height in pixels of the tallest image (decoders size their buffers by it)."""
    max_width: int
    """Width in pixels of the widest image."""
    pixel_counts: dict[int, int]
    """Mask pixels of every code over all splits."""
    mean: tuple[float, float, float]
    """Channel means of the train split's pixels (of all pixels where there is no train split), 0 to 1."""
    std: tuple[float, float, float]
    """Channel standard deviations, likewise."""
    progressive: int = 0
    """How many kept originals are progressive JPEGs, which hardware decoders do not take."""
    source_digest: str = ""
    """SHA-256 over the source's keys and bytes."""
    rejected: tuple[Rejected, ...] = field(default=())
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "format": self.format,
            "splits": {
                name: {
                    "samples": split.samples,
                    "shards": [
                        {"name": s.name, "samples": s.samples, "bytes": s.bytes, "sha256": s.sha256}
                        for s in split.shards
                    ],
                }
                for name, split in self.splits.items()
            },
            "classes": self.classes.to_dict(),
            "encoding": {
                "short_side": self.encoding.short_side,
                "quality": self.encoding.quality,
                "image": self.encoding.image,
                "mask": self.encoding.mask,
                **self.encoding.tones.to_dict(),
            },
            "max_height": self.max_height,
            "max_width": self.max_width,
            "pixel_counts": {str(code): n for code, n in sorted(self.pixel_counts.items())},
            "mean": list(self.mean),
            "std": list(self.std),
            "progressive": self.progressive,
            "source_digest": self.source_digest,
            "rejected": [{"key": r.key, "reason": r.reason} for r in self.rejected],
        }

    def to_bytes(self) -> bytes:
        """The file's content: UTF-8 JSON with a final newline, equal for equal manifests."""
        return (json.dumps(self.to_dict(), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @property
    def digest(self) -> str:
        """SHA-256 of `to_bytes`, hexadecimal: the identity of a data set in checkpoints and results."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, folder: Path) -> Path:
        """Write `manifest.json` into `folder`, whole or not at all."""
        path = folder / MANIFEST_NAME
        write_atomic(path, self.to_bytes())
        return path

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Manifest:
        """The inverse of `to_dict`.

        Raises:
            PetsegError: a newer format, or data that is no manifest.
        """
        version = data.get("format")
        if not isinstance(version, int) or isinstance(version, bool):
            raise PetsegError("it has no whole-number 'format', so it is no petseg manifest: run petseg index.")
        if version < 1:
            raise PetsegError(f"it has format {version}, which never was: pack or index again.")
        if version > FORMAT:
            raise PetsegError(f"it has format {version}, newer than this petseg's {FORMAT}: upgrade petseg.")
        try:
            splits = {
                str(name): Split(
                    samples=_whole(split["samples"]),
                    shards=tuple(
                        ShardInfo(
                            name=str(s["name"]),
                            samples=_whole(s["samples"]),
                            bytes=_whole(s["bytes"]),
                            sha256=str(s["sha256"]),
                        )
                        for s in split["shards"]
                    ),
                )
                for name, split in data["splits"].items()
            }
            manifest = cls(
                splits=splits,
                classes=ClassTable.from_dict(data["classes"]),
                encoding=Encoding(
                    short_side=_whole(data["encoding"]["short_side"]),
                    quality=_whole(data["encoding"]["quality"]),
                    image=str(data["encoding"]["image"]),
                    mask=str(data["encoding"]["mask"]),
                    tones=Tones.from_dict(data["encoding"]),
                ),
                max_height=_whole(data["max_height"]),
                max_width=_whole(data["max_width"]),
                pixel_counts={int(code): _whole(n) for code, n in data["pixel_counts"].items()},
                mean=_triple(data["mean"]),
                std=_triple(data["std"]),
                progressive=_whole(data["progressive"]),
                source_digest=str(data["source_digest"]),
                rejected=tuple(Rejected(key=str(r["key"]), reason=str(r["reason"])) for r in data["rejected"]),
                format=version,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PetsegError(f"it is damaged ({type(error).__name__}: {error}): pack or index again.") from error
        for name, split in manifest.splits.items():
            _check_split(name, split)
        return manifest

    @classmethod
    def load(cls, folder: Path | str | RemoteShards) -> Manifest:
        """Read the manifest of a shard folder, or of shards in a store.

        Raises:
            PetsegError: no such folder, an unfinished pack, no manifest, one of a newer format, or a damaged one; a
                store that cannot be read.
        """
        place = place_of(folder)
        path, content = _fetched(place) if isinstance(place, RemoteShards) else _read(place)
        try:
            data = json.loads(content)
        except ValueError as error:
            raise PetsegError(f"{path} is not JSON ({error}): pack or index again.") from error
        if not isinstance(data, dict):
            raise PetsegError(f"{path} is no petseg manifest: pack or index again.")
        try:
            return cls.from_dict(data)
        except PetsegError as error:
            raise PetsegError(f"{path}: {error}") from error

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {split.samples:,}" for name, split in self.splits.items())
        return f"Manifest({splits}; {self.classes})"

    def samples(self, name: str) -> int:
        """Samples of the split called `name`; 0 where there is none of that name."""
        return self.splits[name].samples if name in self.splits else 0

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            PetsegError: there is none of that name.
        """
        try:
            return self.splits[name]
        except KeyError:
            raise PetsegError(f"no split '{name}'; these shards have {', '.join(sorted(self.splits))}.") from None


def _read(folder: Path) -> tuple[Path, bytes]:
    """(path, content) of a folder's manifest."""
    if not folder.is_dir():
        raise PetsegError(f"no such folder: {folder}; give the folder that petseg-shard wrote.")
    refuse_unfinished(folder)
    path = folder / MANIFEST_NAME
    try:
        return path, path.read_bytes()
    except FileNotFoundError:
        raise PetsegError(
            f"{folder} has no {MANIFEST_NAME}: pack it with petseg-shard, or run `petseg index {folder}` "
            "on tars made elsewhere."
        ) from None
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror}).") from error


def _fetched(remote: RemoteShards) -> tuple[str, bytes]:
    """(address, content) of a store's manifest, of which a copy is kept for `--offline`."""
    address = f"{remote}/{MANIFEST_NAME}"
    copy = remote.cache / "manifests" / f"{hashlib.sha256(remote.address.encode()).hexdigest()}.json"
    if remote.offline:
        try:
            return address, copy.read_bytes()
        except OSError:
            raise PetsegError(f"--offline: {address} was never read on this machine: petseg fetch {remote}.") from None
    try:
        content = remote.objects().get(MANIFEST_NAME)
    except ObjectMissing:
        raise PetsegError(f"{remote} has no {MANIFEST_NAME}: give the folder that petseg-shard wrote.") from None
    with contextlib.suppress(OSError):  # a disk that cannot be written is said when a shard comes
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(copy, content)
    return address, content


def _check_split(name: str, split: Split) -> None:
    if any(s.samples < 0 or s.bytes < 0 for s in split.shards) or split.samples != sum(split.sizes):
        raise PetsegError(f"split '{name}' counts {split.samples} samples but its shards do not add up: pack again.")
    for shard in split.shards:
        # A name with a path in it would read (or, in a tool that repairs, write) outside the folder.
        if Path(shard.name).name != shard.name or shard.name in {"", ".", ".."} or "\0" in shard.name:
            raise PetsegError(
                f"split '{name}' names the shard {shard.name!r}, which is no plain file name: pack again."
            )


def _whole(value: Any) -> int:
    """A count as it stands: `int()` would cut 2.7 to 2 and take True for 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    if not all(math.isfinite(v) for v in (red, green, blue)):
        raise ValueError(f"{values!r} are no finite numbers")
    return red, green, blue
