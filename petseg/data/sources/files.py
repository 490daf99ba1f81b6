"""Helpers of sources of plain files: names, and reading."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from petseg.data.objects import is_remote
from petseg.data.sources import TRAINVAL, Pair
from petseg.data.sources.stored import StorePath
from petseg.errors import PetsegError

MAX_KEY = 96
"""Longest key: a plain tar header has room for 100 characters, suffix included."""

KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY}}}")
"""A fit key."""

_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Suffixes of images."""

MASKS = frozenset({".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"})
"""Suffixes of masks: formats that keep codes."""

JPEGS = frozenset({".jpg", ".jpeg"})
"""Suffixes of masks too, where a class map has a threshold: then what compression changes does no harm."""

MANIFEST_NAME = "manifest.json"
"""What makes a folder of shards a data set; it is written last."""

WORK_FOLDER = ".packing"
"""Folder inside the shards' while they are packed: the plan, and the statistics of finished shards."""


def refuse_unfinished(folder: Path) -> None:
    """Refuse a folder whose pack was not finished, though its tars may look whole.

    Raises:
        PetsegError: it is one.
    """
    if (folder / WORK_FOLDER).is_dir() and not (folder / MANIFEST_NAME).exists():
        raise PetsegError(f"{folder} holds an unfinished pack: finish it with the petseg-shard command that began it.")


FilePath = Path | StorePath
"""Where a source's files are: on a disk, or in a store."""


def path_of(text: str) -> FilePath:
    """The file or folder that a text names; `~` is the home folder."""
    return StorePath.of(text) if is_remote(text) else Path(text).expanduser()


class File(NamedTuple):
    """Metadata of a file."""

    size: int
    """Bytes."""
    tag: str = ""
    """What a store says of its bytes: others have another tag."""


def below(root: FilePath) -> tuple[dict[str, File], int]:
    """Files below a folder, also through links to folders (but not round in a circle).

    Returns:
        (by their paths relative to it, with `/`, sorted as paths are; how many files were passed over by name).

    Raises:
        PetsegError: it cannot be read.
    """
    found, passed = _below_store(root) if isinstance(root, StorePath) else _below_folder(root)
    return {path: found[path] for path in sorted(found, key=lambda path: path.split("/"))}, passed


def _below_store(root: StorePath) -> tuple[dict[str, File], int]:
    every = root.below()
    kept = {
        path: File(meta.size, meta.etag or "")
        for path, meta in every.items()
        if not (any(part.startswith(".") for part in path.split("/")) or ignored(Path(path)))
    }
    return kept, len(every) - len(kept)


def _below_folder(root: Path) -> tuple[dict[str, File], int]:
    found: dict[str, File] = {}
    passed = 0

    def fail(error: OSError) -> None:
        raise PetsegError(f"{error.filename} cannot be read ({error.strerror}).") from error

    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        here = Path(folder).relative_to(root)
        hidden = any(part.startswith(".") for part in here.parts)
        folders[:] = [name for name in folders if not _leads_up(Path(folder, name), real)]
        for name in names:
            path = here / name
            try:
                status = (Path(folder) / name).stat()
            except OSError:
                continue  # a link to nowhere
            if not stat.S_ISREG(status.st_mode):
                continue
            if hidden or ignored(path):
                passed += 1
            else:
                found[path.as_posix()] = File(status.st_size)
    return found, passed


def _leads_up(path: Path, real: str) -> bool:
    """Whether a folder is a link to the real folder that it stands in, or to one above that."""
    if not path.is_symlink():
        return False
    target = os.path.realpath(path)
    return real == target or real.startswith(target.rstrip("/") + "/")


def stem(path: str) -> str:
    """A path with `/` without its suffix."""
    return PurePosixPath(path).with_suffix("").as_posix()


def read_files(pair: Pair) -> tuple[bytes, ...]:
    """Whole files of a pair: image, mask, further masks.

    Raises:
        OSError: one cannot be read.
    """
    return tuple(path_of(path).read_bytes() for path in (pair.image, pair.mask, *pair.more_masks))


HEADER_BYTES = 1 << 16
"""An EXIF block and what stands before it in a JPEG fit in here."""


def heads(image: str, mask: str) -> tuple[bytes, bytes]:
    """The beginnings of two files.

    Raises:
        OSError: one cannot be read.
    """
    if is_remote(image):
        return StorePath.of(image).read_bytes(HEADER_BYTES), StorePath.of(mask).read_bytes(HEADER_BYTES)
    with Path(image).open("rb", buffering=0) as one, Path(mask).open("rb", buffering=0) as other:
        return one.read(HEADER_BYTES), other.read(HEADER_BYTES)


def ignored(path: Path) -> bool:
    """Whether a file is passed over by name: MATLAB's, and what hides (also `._*` that macOS leaves behind)."""
    return path.name.startswith(".") or path.suffix.lower() == ".mat"


def fit_key(name: str) -> str:
    """The key of a file's name, which may hold folders: what does not fit becomes a hyphen.

    Where letters of other scripts or characters beyond the longest key would be lost, so that two names might become
    one key, eight digits of the name's SHA-256 follow. A name is the same in either Unicode form (NFC, NFD).

    Examples:
        >>> fit_key("city/a b"), fit_key("café 1"), fit_key("左0")
        ('city-a-b', 'cafe-1-0a61b404', '0-0bcb9f19')
    """
    plain = _UNFIT.sub("-", name)
    if name.isascii() and len(plain) <= MAX_KEY:
        return plain
    mark = hashlib.sha256(unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return f"{_UNFIT.sub('-', letters)[: MAX_KEY - 9].strip('-')}-{mark}".lstrip("-")


def unfit_key(key: str) -> str | None:
    """Why a key cannot name a sample, or None."""
    if KEY.fullmatch(key):
        return None
    if len(key) > MAX_KEY:
        return f"its name is longer than {MAX_KEY} characters"
    return "its name holds characters other than letters, digits, _ and -"


_SPLITS = {
    "train": "train", "training": "train", "trainval": TRAINVAL, "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def named_split(name: str) -> str | None:
    """The split that a file or folder name speaks of: `train`, `trainval`, `val`, `test`, or None.

    A name speaks of a split by a whole word, so `latest-0.tar` and `interval-0.tar` speak of none; nor does a name with
    the words of two splits.

    Examples:
        >>> [named_split(n) for n in ("pets-train-000.tar", "Validation_1.tar", "latest.tar", "train-val.tar")]
        ['train', 'val', None, None]
    """
    found = {_SPLITS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _SPLITS}
    return found.pop() if len(found) == 1 else None
