"""WebDataset tars made elsewhere, to be repacked."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from petseg.classes import ClassTable
from petseg.data.sources import Listing, Pair, Rejected
from petseg.data.sources.files import HEADER_BYTES, IMAGES, MASKS, fit_key, named_split, refuse_unfinished, unfit_key
from petseg.data.sources.folder import with_val
from petseg.data.sources.pairs import Pairs
from petseg.data.tar import Component, group, members_of, split_name
from petseg.errors import PetsegError
from petseg.system import open_file, read_at

_MASK_WORDS = ("mask", "seg", "label", "trimap", "gt")


@dataclass(frozen=True, slots=True)
class TarsSource:
    """Uncompressed tars whose samples are members of one name up to the first dot, wherever they stand in a tar.

    Where several samples have one name up to the first dot, names count up to the last one. The mask is the member
    whose extension says so (`mask.png`, `seg.png`, `label.png`), or else the only PNG beside an image of another kind.
    Hard links count as what they link to. Nothing is unpickled, and no command is run.

    Tars or their folders that are named like splits are the splits, where all of them are. Where keys restart in every
    tar, the tar's name stands before them.
    """

    pattern: str
    classes: ClassTable

    @property
    def name(self) -> str:
        """As it was named on the command line."""
        return f"tars:{self.pattern}"

    def listing(self) -> Listing:
        """Find the pairs by the tars' headers.

        Raises:
            PetsegError: no tar there, one that is damaged, or no pair in them.
        """
        paths = [Path(path) for path in sorted(glob.glob(self.pattern))]  # noqa: PTH207 - absolute patterns
        if not paths:
            raise PetsegError(f"{self.name}: no such file; quote the pattern, such as 'tars:data/*.tar'.")
        for folder in {path.parent for path in paths}:
            refuse_unfinished(folder)
        root = Path(os.path.commonpath([path.parent for path in paths]))
        splits = {path: _split_of(path.relative_to(root)) for path in paths}
        said = None not in splits.values()
        rejected: list[Rejected] = []
        samples: list[_Sample] = []
        for path in paths:
            for sample in _samples(path):
                if isinstance(sample, Rejected):
                    rejected.append(sample)
                else:
                    samples.append(sample)
        restart = _keys_restart(samples)
        pairs: dict[str, Pair] = {}
        for sample in samples:
            path = sample.path
            before = f"{path.relative_to(root).with_suffix('').as_posix()}/" if restart else ""
            key = fit_key(before + sample.name)
            reason = unfit_key(key)
            if key in pairs:
                reason = f"its key occurs twice (also in {tar_of(pairs[key].image)})"
            if reason:
                rejected.append(Rejected(key=f"{path.name}:{sample.name}", reason=reason, kind="its name"))
                continue
            pairs[key] = Pair(
                key=key,
                image=_where(path, sample.image),
                mask=_where(path, sample.mask),
                size=sample.image.size + sample.mask.size,
                split=splits[path] if said else None,
            )
        if not pairs:
            why = f"; the first sample was left out: {rejected[0].reason}" if rejected else ""
            raise PetsegError(f"{self.name}: no pair of image and mask is left{why}.")
        return Listing(
            pairs=Pairs.of(with_val([pairs[key] for key in sorted(pairs)])),
            rejected=tuple(sorted(rejected, key=lambda r: r.key)),
            rule="by name, within tars"
            + (", whose names stand before keys as these restart in each" if restart else ""),
            split_by="names of tars",
        )

    def read(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`."""
        return _read(pair.image), _read(pair.mask)

    def head(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`."""
        return _read(pair.image, HEADER_BYTES), _read(pair.mask, HEADER_BYTES)


def _read(where: str, most: int | None = None) -> bytes:
    path, _, span = where.rpartition(":")
    offset, size = map(int, span.split("+"))
    file = open_file(path)
    try:
        return read_at(file, size if most is None else min(size, most), offset)
    finally:
        os.close(file)


class _Sample(NamedTuple):
    path: Path
    name: str
    image: Component
    mask: Component


def _samples(path: Path) -> Iterator[_Sample | Rejected]:
    """The samples of a tar, by name."""
    members = members_of(path, "fetch it again, or unpack it", links=True)
    for name, components in group(sorted(members, key=lambda member: split_name(member.name)[0])):
        chosen = _choose(components)
        if isinstance(chosen, str) and (parts := _by_last_dot(components)):
            yield from (_Sample(path, part, *pair) for part, pair in parts.items())
        elif isinstance(chosen, str):
            yield Rejected(key=f"{path.name}:{name}", reason=chosen)
        else:
            yield _Sample(path, name, *chosen)


def _by_last_dot(members: Sequence[Component]) -> dict[str, tuple[Component, Component]]:
    """Samples by their names up to the last dot, where all members make pairs so; else none."""
    parts: dict[str, list[Component]] = {}
    for member in members:
        name, _, extension = member.name.rpartition(".")
        parts.setdefault(name, []).append(member._replace(extension=extension))
    chosen = {name: _choose(part) for name, part in parts.items()}
    pairs = {name: pair for name, pair in chosen.items() if not isinstance(pair, str)}
    return pairs if len(pairs) == len(parts) > 1 else {}


def _keys_restart(samples: Sequence[_Sample]) -> bool:
    """Whether two tars use one key for different samples."""
    first: dict[str, _Sample] = {}
    for sample in samples:
        other = first.setdefault(fit_key(sample.name), sample)
        if other.path != sample.path and _bytes_of(other) != _bytes_of(sample):
            return True
    return False


def _bytes_of(sample: _Sample) -> tuple[bytes, bytes]:
    return _read(_where(sample.path, sample.image)), _read(_where(sample.path, sample.mask))


def tar_of(where: str) -> str:
    """The path of the tar in which a member is; where a file is is that itself."""
    return _SPAN.sub("", where)


_SPAN = re.compile(r":\d+\+\d+$")


def _where(path: Path, member: Component) -> str:
    return f"{path}:{member.offset}+{member.size}"


def _split_of(path: Path) -> str | None:
    """The split that a tar's name speaks of, or the name of the nearest folder that does."""
    return next((split for part in reversed(path.parts) if (split := named_split(part))), None)


def _choose(members: Sequence[Component]) -> tuple[Component, Component] | str:
    """Image and mask of a sample, or why there is none."""
    by_extension: dict[str, Component] = {}
    for member in members:
        if by_extension.setdefault(member.extension.lower(), member) is not member:
            return f"it holds {member.name} twice"
    either = {e: m for e, m in by_extension.items() if f".{e.rpartition('.')[2]}" in IMAGES}
    named = [e for e in either if any(word in e for word in _MASK_WORDS) and f".{e.rpartition('.')[2]}" in MASKS]
    masks = named or [e for e in either if f".{e.rpartition('.')[2]}" == ".png" and len(either) > 1]
    images = [e for e in either if e not in masks]
    if len(masks) == 1 and len(images) == 1:
        return either[images[0]], either[masks[0]]
    what = ", ".join(sorted(by_extension)) or "nothing"
    return f"its members ({what}) are not one image and one mask"
