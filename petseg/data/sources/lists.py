"""Splits by lists of keys, over any source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath, PurePosixPath

from petseg.data.sources import TRAINVAL, LeftOver, Listing, OverSource, Pair, Rejected
from petseg.data.sources.files import IMAGES, MASKS, FilePath
from petseg.data.sources.pairing import NO_IMAGE, NO_MASK
from petseg.data.sources.pairs import Pairs
from petseg.errors import PetsegError

_VOC_LISTS = PurePosixPath("ImageSets", "Segmentation")


@dataclass(frozen=True, slots=True)
class ListedSource(OverSource):
    """A source whose pairs are in the splits that lists name them for; those on none are left out.

    A line names a pair by its key, by the file name of its image or mask (with suffix or without) where one pair alone
    has it, or by the end of such a file's path, from one folder on at least; what follows after a space is not read,
    nor are lines that begin with #. Without a list for `val`, a tenth of the one for `train` becomes it.
    """

    lists: tuple[tuple[str, FilePath], ...]
    """(split, file) each."""
    found: bool = False
    """The lists were found, not given: lines for which there is no pair are left over, and no rejects."""

    def listing(self) -> Listing:
        """The source's pairs, by the lists.

        Raises:
            PetsegError: a list that cannot be read or names nothing, or a pair that is on two.
        """
        listing = self.inner.listing()
        names = _Named(listing.pairs)
        found: dict[str, tuple[str, FilePath]] = {}
        rejected = [each for each in listing.rejected if each.reason not in {NO_MASK, NO_IMAGE}]
        left_over = [*listing.left_over, *_alone(listing.rejected)]
        used: list[FilePath] = []
        for split, path in self.lists:
            lines, missing = _lines(path), []
            for line in lines:
                key = names.key(line)
                if key is None:
                    missing.append(line)
                    continue
                before, other = found.get(key, (split, path))
                if before != split:
                    raise PetsegError(f"{key} is on {other} and on {path}: take it off one of them.")
                found[key] = split, path
            if self.found and missing:
                why = "on this list, but there is no such pair"
                left_over.append(LeftOver(where=path.name, files=len(missing), why=why, example=missing[0]))
            elif not self.found:
                rejected += [
                    Rejected(
                        key=line,
                        reason=f"it is on {path.name}, but there is no such pair{names.like(line)}",
                        kind="on a list",
                    )
                    for line in missing
                ]
            if any(each == split for each, _ in found.values()):
                used.append(path)
            elif not self.found:
                first = f", such as '{lines[0]}'" if lines else ""
                raise PetsegError(f"{path} names no pair of {self.name}{first}: give one key or file name a line.")
        if not found:
            return listing
        splits = {split for split, _ in found.values()}
        if "val" not in splits:
            found = {key: (TRAINVAL if split == "train" else split, path) for key, (split, path) in found.items()}
        return replace(
            listing,
            pairs=Pairs.of(
                replace(pair, split=found[pair.key][0] if pair.key in found else None) for pair in listing.pairs
            ),
            rejected=tuple(sorted(rejected, key=lambda each: each.key)),
            left_over=tuple(left_over),
            rule=f"{listing.rule}, in the splits of {', '.join(str(path) for path in used)}",
            split_by="lists",
            unlisted=tuple(pair.key for pair in listing.pairs if pair.key not in found),
        )


def lists_beside(*folders: FilePath) -> tuple[tuple[str, FilePath], ...]:
    """(split, file) of the lists in VOC's layout, in a folder or in the one above, where there are any."""
    for folder in (*folders, *(folder.parent for folder in folders)):
        beside = folder / _VOC_LISTS
        found = tuple(
            (split, path) for split in ("train", "val", "test") if (path := beside / f"{split}.txt").is_file()
        )
        if found:
            return found
    return ()


def _alone(rejected: Iterable[Rejected]) -> list[LeftOver]:
    """Files without a partner, which are not expected to have one where there are lists."""
    found: list[LeftOver] = []
    for why in (NO_MASK, NO_IMAGE):
        names = [each.key for each in rejected if each.reason == why]
        if names:
            found.append(LeftOver(where="on no list", files=len(names), why=why, example=names[0]))
    return found


class _Named:
    """Pairs by what a line may call them."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._keys = {pair.key for pair in pairs}
        self._paths = [(_parts(path), pair.key) for pair in pairs for path in {pair.image, pair.mask, *pair.more_masks}]
        self._ends: dict[int, dict[tuple[str, ...], str]] = {}

    def key(self, line: str) -> str | None:
        """The pair that a line names, if one alone may be meant."""
        for text in (line, line.split(maxsplit=1)[0]):
            parts = _parts(text)
            for name in (text, "-".join(parts)):
                if name in self._keys:
                    return name
            for length in range(len(parts), 1 if len(parts) > 1 else 0, -1):
                if key := self._of_length(length).get(parts[-length:]):
                    return key
        return None

    def like(self, line: str) -> str:
        """The sample that a line may have meant: the end of a sentence."""
        parts = _parts(line.split(maxsplit=1)[0])
        key = self._of_length(1).get(parts[-1:]) if len(parts) > 1 else None
        return f" ({key} has that name, in another folder)" if key else ""

    def _of_length(self, length: int) -> dict[tuple[str, ...], str]:
        """Keys by the last names of a path; "" for what several pairs have."""
        if length not in self._ends:
            ends: dict[tuple[str, ...], str] = {}
            for parts, key in self._paths:
                end = parts[-length:]
                if len(end) == length and ends.setdefault(end, key) != key:
                    ends[end] = ""
            self._ends[length] = ends
        return self._ends[length]


def _parts(text: str) -> tuple[str, ...]:
    """Folders and name of a path, without the suffix of an image."""
    path = PurePath(text)
    bare = path.with_suffix("") if path.suffix.lower() in IMAGES | MASKS else path
    return tuple(part for part in bare.parts if part != path.anchor)


def _lines(path: FilePath) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PetsegError(f"the list {path} cannot be read: give a text file with one key a line.") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
