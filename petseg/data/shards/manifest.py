"""`manifest.json`: what a folder of shards holds, as data that never depends on when or by whom it was made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from petseg.classes import ClassTable
from petseg.data.decode.rgb import AS_IT_IS, Tones
from petseg.data.objects import ObjectMissing
from petseg.data.shards.columns import ShardColumns, ShardInfo, from_bytes, to_bytes
from petseg.data.shards.place import RemoteShards, place_of
from petseg.data.sources import Rejected
from petseg.data.sources.files import MANIFEST_NAME, refuse_unfinished
from petseg.errors import PetsegError
from petseg.system import write_atomic

FORMAT = 2
"""The newest version of the manifest that this petseg reads. The second keeps its shards in columns, in a file beside
it; it is written for more than `COLUMNS_FROM` shards."""

COLUMNS_FROM = 2_000


def columns_name(sha256: str) -> str:
    """The file of the columns that have this SHA-256: what is added to a set is written beside what is there."""
    return f"shards-{sha256[:16]}.npz"


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The shards of one split, in the order that gives samples their indices."""

    samples: int
    shards: Sequence[ShardInfo]

    @property
    def sizes(self) -> list[int]:
        """Samples of each shard, in order."""
        if isinstance(self.shards, ShardColumns):
            sizes: list[int] = self.shards.samples.tolist()
            return sizes
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

    @property
    def raw(self) -> bool:
        """Whether images are stored as pixels (PPM), and not as JPEGs."""
        return self.image == "ppm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dealt:
    """What decided who is in which split, for what is added later."""

    split: str
    """`official` or `random`."""
    seed: int
    group: str | None


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Manifest:
    """Everything that is known about a folder of shards. Equal data gives equal bytes.

    Examples:
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
    dealt: Dealt | None = None
    """None where petseg did not deal the samples to splits, or did so before version 0.2."""
    format: int = 0
    """Version of the file; 0 for the one that suits the number of shards."""

    def __post_init__(self) -> None:
        many = sum(len(split.shards) for split in self.splits.values()) > COLUMNS_FROM
        version = self.format or (2 if many else 1)
        object.__setattr__(self, "format", version)
        if version == 2:
            splits = {
                name: Split(samples=split.samples, shards=ShardColumns.of(split.shards))
                for name, split in self.splits.items()
            }
            object.__setattr__(self, "splits", splits)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; of columns, their SHA-256."""
        columns = self._columns()
        sha256 = hashlib.sha256(columns).hexdigest() if columns else ""
        return {
            "format": self.format,
            "splits": {
                name: {
                    "samples": split.samples,
                    "shards": {"columns": sha256}
                    if columns
                    else [
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
            **({} if self.dealt is None else {"dealt": asdict(self.dealt)}),
        }

    def to_bytes(self) -> bytes:
        """The file's content: UTF-8 JSON with a final newline, equal for equal manifests."""
        return (json.dumps(self.to_dict(), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @property
    def digest(self) -> str:
        """SHA-256 of `to_bytes`, hexadecimal: the identity of a data set in checkpoints and results."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def _columns(self) -> bytes:
        """What lies beside the second version of the file; empty for the first."""
        if self.format == 1:
            return b""
        return to_bytes({name: ShardColumns.of(split.shards) for name, split in self.splits.items()})

    def files(self) -> dict[str, bytes]:
        """What is to be written, by its name, the manifest last."""
        columns = self._columns()
        beside = {columns_name(hashlib.sha256(columns).hexdigest()): columns} if columns else {}
        return beside | {MANIFEST_NAME: self.to_bytes()}

    def save(self, folder: Path) -> Path:
        """Write `manifest.json` into `folder`, whole or not at all, and before it what lies beside it."""
        for name, data in self.files().items():
            write_atomic(folder / name, data)
        return folder / MANIFEST_NAME

    @classmethod
    def from_dict(cls, data: dict[str, Any], columns: bytes = b"") -> Manifest:
        """The inverse of `to_dict`.

        Args:
            data: plain JSON data.
            columns: the content of the file beside it, where there is one.

        Raises:
            PetsegError: a newer format, or data that is not a manifest.
        """
        version = data.get("format")
        if not isinstance(version, int) or isinstance(version, bool):
            raise PetsegError("it has no whole-number 'format', so it is not a petseg manifest: run petseg index.")
        if version < 1:
            raise PetsegError(f"it has format {version}, which is unknown: pack or index again.")
        if version > FORMAT:
            raise PetsegError(f"it has format {version}, newer than this petseg's {FORMAT}: upgrade petseg.")
        try:
            splits = {
                str(name): Split(samples=_whole(split["samples"]), shards=_shards(str(name), split["shards"], columns))
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
                dealt=_dealt(data.get("dealt")),
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

        def read(name: str) -> tuple[Path | str, bytes]:
            return _fetched(place, name) if isinstance(place, RemoteShards) else _read(place, name)

        path, content = read(MANIFEST_NAME)
        try:
            data = json.loads(content)
        except ValueError as error:
            raise PetsegError(f"{path} is not JSON ({error}): pack or index again.") from error
        if not isinstance(data, dict):
            raise PetsegError(f"{path} is not a petseg manifest: pack or index again.")
        try:
            name = _columns_of(data)
            return cls.from_dict(data, read(name)[1] if name else b"")
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


def _read(folder: Path, name: str) -> tuple[Path, bytes]:
    """(path, content) of a folder's manifest, or of what lies beside it."""
    if not folder.is_dir():
        raise PetsegError(f"no such folder: {folder}; give the folder that petseg-shard wrote.")
    refuse_unfinished(folder)
    path = folder / name
    try:
        return path, path.read_bytes()
    except FileNotFoundError:
        raise PetsegError(
            f"{folder} has no {name}: pack it with petseg-shard, or run `petseg index {folder}` on tars made elsewhere."
        ) from None
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror}).") from error


def _fetched(remote: RemoteShards, name: str) -> tuple[str, bytes]:
    """(address, content) of a store's manifest, or of what lies beside it, of which a copy is kept for `--offline`."""
    address = f"{remote}/{name}"
    where = hashlib.sha256(remote.address.encode()).hexdigest()
    copy = remote.cache / "manifests" / f"{where}{Path(name).suffix}"
    if remote.offline:
        try:
            return address, copy.read_bytes()
        except OSError:
            raise PetsegError(
                f"--offline: {address} is not cached on this machine: run petseg fetch {remote}."
            ) from None
    try:
        content = remote.objects().get(name)
    except ObjectMissing:
        raise PetsegError(f"{remote} has no {name}: give the folder that petseg-shard wrote.") from None
    with contextlib.suppress(OSError):  # a disk that cannot be written is said when a shard comes
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(copy, content)
    return address, content


def _columns_of(data: dict[str, Any]) -> str:
    """The file that a manifest's columns are in; empty where it has none."""
    if data.get("format") != 2:
        return ""
    try:
        return next(iter({columns_name(str(split["shards"]["columns"])) for split in data["splits"].values()}), "")
    except (KeyError, TypeError, AttributeError):
        return ""  # which `from_dict` refuses


def _dealt(data: Any) -> Dealt | None:
    if data is None:
        return None
    group = data["group"]
    return Dealt(split=str(data["split"]), seed=int(data["seed"]), group=None if group is None else str(group))


def _shards(name: str, data: Any, columns: bytes) -> Sequence[ShardInfo]:
    """A split's shards, as objects or from the columns."""
    if isinstance(data, dict):
        if hashlib.sha256(columns).hexdigest() != data["columns"]:
            name = columns_name(data["columns"])
            raise PetsegError(f"{name} is not the one that belongs to it: copy both again.")
        return from_bytes(columns, name)
    return tuple(
        ShardInfo(name=str(s["name"]), samples=_whole(s["samples"]), bytes=_whole(s["bytes"]), sha256=str(s["sha256"]))
        for s in data
    )


def _check_split(name: str, split: Split) -> None:
    shards = split.shards
    if isinstance(shards, ShardColumns):
        least = min(shards.samples.min(initial=0), shards.sizes.min(initial=0))
        names = [each.decode("utf-8", "replace") for each in shards.names.tolist()]
    else:
        least = min((min(shard.samples, shard.bytes) for shard in shards), default=0)
        names = [shard.name for shard in shards]
    if least < 0 or split.samples != sum(split.sizes):
        raise PetsegError(f"split '{name}' counts {split.samples} samples but its shards do not add up: pack again.")
    # A name with a path in it would read (or, in a tool that repairs, write) outside the folder.
    for each in names:
        if Path(each).name != each or each in {"", ".", ".."} or "\0" in each:
            raise PetsegError(f"split '{name}' names the shard {each!r}, which is not a plain file name: pack again.")


def _whole(value: Any) -> int:
    """A count as it stands: `int()` would cut 2.7 to 2 and take True for 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    if not all(math.isfinite(v) for v in (red, green, blue)):
        raise ValueError(f"{values!r} are not finite numbers")
    return red, green, blue
