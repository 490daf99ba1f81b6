"""`--append`: new shards beside a finished pack's, which are not touched, and a manifest of all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from petseg.classes import ClassTable
from petseg.data.shards.index import index_name, parse_index
from petseg.data.shards.manifest import ENCODINGS, Manifest, Split
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import Output
from petseg.data.shards.plan import SPLITS, number_of, split_of
from petseg.data.sources import Listing
from petseg.data.sources.files import MANIFEST_NAME
from petseg.errors import PetsegError

_OURS = re.compile(rf"({'|'.join(SPLITS)})-[0-9]{{6,}}\.tar")


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A finished pack that is added to."""

    name: str
    """The name that was given for it."""
    manifest: Manifest
    splits: Mapping[str, str]
    """Of all its samples, by key."""
    first: dict[str, int]
    """The number of each split's next shard."""
    digest: str
    """SHA-256 of the manifest's file."""

    def new(self, listing: Listing) -> int:
        """How many pairs of a listing are not there."""
        return sum(pair.key not in self.splits for pair in listing.pairs)

    def check_classes(self, classes: ClassTable) -> None:
        """Refuse a source whose classes differ from the pack's.

        Raises:
            PetsegError: they differ.
        """
        there = self.manifest.classes
        if classes.to_dict() != there.to_dict():
            raise PetsegError(
                f"--append: {self.name} has the classes {', '.join(there.names)}, what is added "
                f"{', '.join(classes.names)}, or other codes or colours: give the same --classes as then."
            )

    def check_unchanged(self, out: Output) -> None:
        """Refuse if another run has added to it meanwhile.

        Raises:
            PetsegError: another run has.
        """
        if hashlib.sha256(out.read(MANIFEST_NAME) or b"").hexdigest() != self.digest:
            raise PetsegError(f"{out} was added to by another run: run the same command again.")

    def options(self, asked: PackOptions) -> PackOptions:
        """The options to pack with: as given, but encoded and split as the pack is.

        Raises:
            PetsegError: something else was asked for.
        """
        encoding, dealt = self.manifest.encoding, self.manifest.dealt
        name = next(name for name, kinds in ENCODINGS.items() if kinds == (encoding.image, encoding.mask))
        there: dict[str, Any] = {
            "short_side": encoding.short_side,
            "encoding": name,
            "range": encoding.tones.range,
            "bands": encoding.tones.bands,
        }
        if encoding.quality:
            there["quality"] = encoding.quality
        if dealt is not None:
            there |= {"seed": dealt.seed, "group": dealt.group}
        plain = PackOptions()
        for option, value in there.items():
            given = getattr(asked, option)
            if given not in (value, getattr(plain, option)):
                raise PetsegError(
                    f"--{option.replace('_', '-')} {given}: {self.name} was packed with {value}, and what is added has "
                    "to fit: leave it out."
                )
        if asked.percentiles:
            raise PetsegError(f"--range: {self.name} has one already, and what is added has to fit: leave it out.")
        return replace(asked, **there)


def base_of(out: Output) -> Base:
    """The finished pack of an output.

    Raises:
        PetsegError: there is none, or one that another tool made.
    """
    content = out.read(MANIFEST_NAME)
    if content is None:
        raise PetsegError(f"--append: {out} holds no finished pack: leave it out to begin one.")
    manifest = Manifest.load(str(out))
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    if (manifest.encoding.image, manifest.encoding.mask) not in ENCODINGS.values() or not all(
        _OURS.fullmatch(shard.name) for shard in shards
    ):
        raise PetsegError(
            f"--append: the tars of {out} were made by another tool: pack them with what is new, by tars:{out}/*.tar."
        )
    splits: dict[str, str] = {}
    first = dict.fromkeys(SPLITS, 0)
    for shard in shards:
        name = index_name(shard.name)
        data = out.read(name)
        if data is None:
            raise PetsegError(f"{out}/{name} is missing: run `petseg index {out}` to write it again.")
        split = split_of(shard.name)
        for entry in parse_index(data, f"{out}/{name}", f"run `petseg index {out}`."):
            splits[entry.key] = split
        first[split] = max(first[split], number_of(shard.name) + 1)
    digest = hashlib.sha256(content).hexdigest()
    return Base(name=str(out), manifest=manifest, splits=splits, first=first, digest=digest)


def together(base: Manifest, added: Manifest) -> Manifest:
    """The manifest of what was there and what was added.

    Means and deviations stay what they were, so that a network sees the same image as the same numbers, before and
    after.
    """
    splits: dict[str, Split] = {}
    for name in SPLITS:
        parts = [manifest.splits[name] for manifest in (base, added) if name in manifest.splits]
        if parts:
            shards = tuple(shard for part in parts for shard in part.shards)
            splits[name] = Split(samples=sum(part.samples for part in parts), shards=shards)
    return replace(
        base,
        splits=splits,
        encoding=replace(base.encoding, tones=added.encoding.tones),
        max_height=max(base.max_height, added.max_height),
        max_width=max(base.max_width, added.max_width),
        pixel_counts={code: n + added.pixel_counts.get(code, 0) for code, n in base.pixel_counts.items()},
        progressive=base.progressive + added.progressive,
        source_digest=hashlib.sha256(f"{base.source_digest} {added.source_digest}".encode()).hexdigest(),
        rejected=(*base.rejected, *added.rejected),
        format=0,
    )
