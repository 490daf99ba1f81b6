"""Splits by lists of keys, over any source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from petseg.data.sources import TRAINVAL, Listing, OverSource, Pair, Rejected
from petseg.data.sources.files import IMAGES, MASKS
from petseg.errors import PetsegError


@dataclass(frozen=True, slots=True)
class ListedSource(OverSource):
    """A source whose pairs are in the splits that lists name them for; those on none are left out.

    A line names a pair by its key, or by the file name of its image or mask (with folders and suffix or without); what
    follows after a space is not read, nor are lines that begin with #. Without a list for `val`, a tenth of the one for
    `train` becomes it.
    """

    lists: tuple[tuple[str, Path], ...]
    """(split, file) each."""

    def listing(self) -> Listing:
        """The source's pairs, by the lists.

        Raises:
            PetsegError: a list that cannot be read or names nothing, or a pair that is on two.
        """
        listing = self.inner.listing()
        key_of = _names(listing.pairs)
        splits = {split for split, _ in self.lists}
        found: dict[str, tuple[str, Path]] = {}
        rejected = list(listing.rejected)
        for split, path in self.lists:
            lines = _lines(path)
            for line in lines:
                key = next((key_of[name] for name in _candidates(line) if key_of.get(name)), None)
                if key is None:
                    rejected.append(Rejected(key=line, reason=f"it is on {path.name}, but there is no such pair"))
                    continue
                before, other = found.get(key, (split, path))
                if before != split:
                    raise PetsegError(f"{key} is on {other} and on {path}: take it off one of them.")
                found[key] = split, path
            if not any(split == taken for taken, _ in found.values()):
                first = f", such as '{lines[0]}'" if lines else ""
                raise PetsegError(f"{path} names no pair of {self.name}{first}: give one key or file name a line.")
        if "val" not in splits:
            found = {key: (TRAINVAL if split == "train" else split, path) for key, (split, path) in found.items()}
        return replace(
            listing,
            pairs=tuple(
                replace(pair, split=found[pair.key][0] if pair.key in found else None) for pair in listing.pairs
            ),
            rejected=tuple(sorted(rejected, key=lambda each: each.key)),
            split_by="lists",
            unlisted=tuple(pair.key for pair in listing.pairs if pair.key not in found),
        )


def _names(pairs: tuple[Pair, ...]) -> dict[str, str]:
    """Key by what a line may call a pair; file names that several pairs have are not among it."""
    stems = [(Path(file).stem, pair.key) for pair in pairs for file in {pair.image, pair.mask}]
    times = Counter(stem for stem, _ in set(stems))
    return {stem: key for stem, key in stems if times[stem] == 1} | {pair.key: pair.key for pair in pairs}


def _candidates(line: str) -> list[str]:
    """What a line may mean, the likeliest first."""
    found = []
    for text in (line, line.split(maxsplit=1)[0]):
        path = Path(text)
        bare = path.with_suffix("") if path.suffix.lower() in IMAGES | MASKS else path
        found += [text, "-".join(part for part in bare.parts if part != "/"), bare.name]
    return found


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PetsegError(f"the list {path} cannot be read: give a text file with one key a line.") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
