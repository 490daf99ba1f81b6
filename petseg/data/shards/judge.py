"""Judges whether a pack that rejected samples is worth finishing, while it runs and at its end."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from petseg.classes import ClassTable
from petseg.data.decode.image_files import DAMAGED
from petseg.data.shards.collected import Collected
from petseg.data.shards.mask_files import CLASS_MAP
from petseg.data.shards.scan import scan_masks
from petseg.data.sources import Pair, Rejected, Source
from petseg.data.sources.pairing import NO_IMAGE, NO_MASK
from petseg.data.sources.pairs import Pairs
from petseg.errors import PetsegError, RefusedError

_LOOKED_AT = 50
"""Masks that are looked at for a class map to propose."""

_ENOUGH_SEEN, _ENOUGH_REJECTS = 100, 10
"""Samples and rejects before which nothing is judged while a pack runs."""

_ONE_KIND, _SHARE = 0.9, 0.05
"""Share of the rejects that make them nearly all of one kind, and share of the samples that they are at least."""

_LEAST_OF_A_CLASS = 3
"""Files of a class of files at least, of which all were rejected."""

_AGAIN = "\n--allow-rejects packs the others all the same."

_ADVICE = {
    f"image {DAMAGED}": "fetch or copy the images again",
    f"mask {DAMAGED}": "fetch or copy the masks again",
    NO_MASK: "check by --dry-run what pairs, and give --pair for what belongs together",
    NO_IMAGE: "check by --dry-run what pairs, and give --pair for what belongs together",
}


@dataclass(frozen=True, slots=True)
class Judge:
    """Looks at what was packed and what was rejected."""

    source: Source
    pairs: Pairs
    """Those to be packed."""
    before: Mapping[int, int]
    """Mask pixels by code of what they are added to."""

    def so_far(self, done: Collected) -> None:
        """Judge the first shards.

        Raises:
            RefusedError: so many are rejected that the rest is not worth its time.
        """
        found = _Lost.of(done, self.source.classes, self.before)
        if found.seen >= _ENOUGH_SEEN and len(found.rejected) >= _ENOUGH_REJECTS:
            self._judge(found, early=True)

    def at_the_end(self, done: Collected, listed: Iterable[Rejected]) -> None:
        """Judge the whole.

        Args:
            done: all shards.
            listed: what was rejected before packing.

        Raises:
            RefusedError: more than half was rejected, nearly all for one reason, or all of one class of files; or a
                class of the map has no pixel.
        """
        found = _Lost.of(done, self.source.classes, self.before)
        before = list(listed)
        if found.packed and len(found.rejected) + len(before) > found.packed:
            found = replace(found, rejected=[*before, *found.rejected])
        self._judge(found, early=False)
        if found.packed and found.lost:
            raise RefusedError(
                f"no mask holds {some_of(found.lost)}, which the class map has: correct its codes or colours, or take "
                f"out what the masks lack (`petseg classes` shows what they hold).{_AGAIN}"
            )

    def _judge(self, found: _Lost, *, early: bool) -> None:
        rejected = found.rejected
        what = f"after {found.seen:,} of {len(self.pairs):,} samples, " if early else ""
        if not rejected:
            return
        first = rejected[0]
        if not found.packed:
            how = self._advice(rejected)
            raise RefusedError(
                f"{what}no pair is left to pack: all {len(rejected)} were rejected, {first.key} because "
                f"{first.reason}: {how}"
            )
        if len(rejected) > found.packed:
            how = f"give --allow-rejects to pack the others, or {self._advice(rejected)}"
            raise RefusedError(
                f"{what}{len(rejected):,} of {found.seen:,} were rejected, {first.key} because {first.reason}: {how}"
            )
        fault = [each for each in rejected if _of_class_map(each) and self.pairs.find(each.key)]
        if found.lost and len(fault) >= (_ENOUGH_REJECTS if early else 1):
            # A class map has to fit the masks that were packed, too.
            left_out = {each.key for each in rejected}
            some = self._pairs_of(fault[: _LOOKED_AT // 2])
            others = (pair for pair in found.done.pairs() if pair.key not in left_out)
            some += itertools.islice(others, _LOOKED_AT // 2)
            raise RefusedError(
                f"{what}no mask that was packed holds {some_of(found.lost)}, and {len(fault)} were rejected, "
                f"{fault[0].key} because {fault[0].reason}: {self._class_map_advice(some)}{_AGAIN}"
            )
        (kind, times), *_ = Counter(map(_kind, rejected)).most_common()
        if len(rejected) >= max(_ENOUGH_REJECTS, _SHARE * found.seen) and times >= _ONE_KIND * len(rejected):
            alike = [each for each in rejected if _kind(each) == kind]
            raise RefusedError(
                f"{what}{len(rejected):,} of {found.seen:,} were rejected, nearly all for one reason, {alike[0].key} "
                f"because {alike[0].reason}: {self._advice(alike)}{_AGAIN}"
            )
        self._refuse_class_of_files(found, _ENOUGH_REJECTS if early else _LEAST_OF_A_CLASS, what)

    def _refuse_class_of_files(self, found: _Lost, least: int, what: str) -> None:
        """Refuse where all files of one folder or suffix were rejected, and hardly any others."""
        left_out = {each.key: each for each in found.rejected if self.pairs.find(each.key)}
        if len(left_out) < least:
            return
        seen = Counter[str]()
        gone = Counter[str]()
        looked_at = 0
        for pair in found.done.pairs():
            looked_at += 1
            for name in _classes_of(pair):
                seen[name] += 1
                gone[name] += pair.key in left_out
        for name, times in gone.most_common():
            if times == seen[name] < looked_at and times >= max(least, _ONE_KIND * len(left_out)):
                first = next(
                    left_out[pair.key] for pair in self._pairs_of(left_out.values()) if name in _classes_of(pair)
                )
                raise RefusedError(
                    f"{what}all {times:,} {name} were rejected, {first.key} because {first.reason}: "
                    f"{self._advice(list(left_out.values()))}{_AGAIN}"
                )

    def _pairs_of(self, rejected: Iterable[Rejected]) -> list[Pair]:
        """The pairs of rejects that have one."""
        return [pair for each in rejected if (pair := self.pairs.find(each.key)) is not None]

    def _advice(self, rejected: list[Rejected]) -> str:
        """What to do about rejects that are mostly of one kind."""
        unknown = self._pairs_of(each for each in rejected if _of_class_map(each))
        if len(unknown) > len(rejected) // 2:
            return self._class_map_advice(unknown)
        kind, _ = Counter(map(_kind, rejected)).most_common(1)[0]
        return f"{_ADVICE.get(kind, 'correct these files, or give the options that fit them')}."

    def _class_map_advice(self, pairs: list[Pair]) -> str:
        """What to do about masks whose codes are not the class map's."""
        scan = scan_masks((pair.key, self.source.read(pair)[1]) for pair in pairs[:_LOOKED_AT])
        try:
            example = scan.to_toml().strip()
        except PetsegError as error:
            return f"look at the masks: {error}"
        folder = Path(os.path.commonpath([str(Path(pair.mask).parent) for pair in pairs]))
        command = f"`petseg classes {folder} --out classes.toml` writes one" if folder.is_dir() else "write one"
        return f"give a class map (--classes); {command}, and for these masks it would be\n{example}"


@dataclass(frozen=True, slots=True)
class _Lost:
    packed: int
    rejected: list[Rejected]
    lost: list[str]
    """Names of the map's classes without a pixel."""
    done: Collected

    @property
    def seen(self) -> int:
        return self.packed + len(self.rejected)

    @classmethod
    def of(cls, done: Collected, classes: ClassTable, before: Mapping[int, int]) -> _Lost:
        every = list(done.stats.values())
        packed = sum(stats.info.samples for stats in every if stats.info is not None)
        pixels = Counter[int](before)
        for stats in every:
            pixels.update(stats.pixel_counts)
        lost = [name for code, name in zip(classes.codes, classes.names, strict=True) if not pixels[code]]
        rejected = sorted((each for stats in every for each in stats.rejected), key=lambda each: each.key)
        return cls(packed, rejected, lost, done)


def _of_class_map(rejected: Rejected) -> bool:
    return rejected.kind == CLASS_MAP


def _kind(rejected: Rejected) -> str:
    return rejected.kind or rejected.reason


def _classes_of(pair: Pair) -> set[str]:
    """The classes of files that a pair belongs to, in words."""
    found: set[str] = set()
    for what, where in (("image", pair.image), ("mask", pair.mask)):
        path = Path(where)
        if path.suffix.isascii() and path.suffix[1:].isalnum():
            found |= {f"{what}s that end in {path.suffix}", f"{what}s in {path.parent}"}
    return found


def some_of(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
