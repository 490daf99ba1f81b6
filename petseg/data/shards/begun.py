"""The plan of a pack: fixed before the first sample is packed, equal on every machine, and stored in the output."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from petseg.data.shards.added import Base
from petseg.data.shards.index import index_name
from petseg.data.shards.judge import Judge
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import PLAN_NAME, Output
from petseg.data.shards.plan import Plan, compact, make_plan, shard_sizes
from petseg.data.shards.pool import Made, Runner, run_jobs
from petseg.data.shards.probe import Machine
from petseg.data.shards.sizing import samples_for_bytes
from petseg.data.shards.survey import survey
from petseg.data.shards.work import ShardJob, cannot_write, note_name
from petseg.data.sources import Listing, Source
from petseg.data.sources.files import MANIFEST_NAME, WORK_FOLDER
from petseg.data.sources.pairs import Pairs
from petseg.errors import PetsegError, RefusedError

REFUSED = f"{WORK_FOLDER}/refused"
"""File that marks a pack that lost too much, so that any other may replace it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A pack that was planned."""

    source: Source
    listing: Listing
    plan: Plan
    options: PackOptions
    """The options, with everything `auto` settled."""
    machine: Machine
    pairs: Pairs
    """Of all shards."""
    base: Base | None
    """What it is added to."""

    @property
    def judge(self) -> Judge:
        """The judge of what is lost."""
        return Judge(self.source, self.pairs, self.base.manifest.pixel_counts if self.base else {})

    def jobs(self, part: tuple[int, int] = (1, 1)) -> Sequence[ShardJob]:
        """The shards of a part, the largest first, each made when it is asked for.

        Args:
            part: (i, n) for the i-th of n, from 1 on; together they are all shards.
        """
        names = part_of(self.plan.sizes, part)
        return Made(lambda n: ShardJob(name=names[n], pairs=self.plan.members(names[n])), len(names))


def part_of(sizes: Mapping[str, int], part: tuple[int, int]) -> list[str]:
    """The names of a part's shards, the largest first: every n-th.

    Args:
        sizes: samples by the names of all.
        part: (i, n) for the i-th of n, from 1 on.

    Examples:
        >>> part_of({"a": 2, "b": 3, "c": 2}, (1, 2))
        ['b', 'c']
    """
    number, count = part
    return sorted(sizes, key=lambda name: (-sizes[name], name))[number - 1 :: count]


def planned_sizes(plan: Mapping[str, Any], out: Output) -> dict[str, int]:
    """Samples by shard, of a plan as it is kept.

    Raises:
        PetsegError: another version of petseg wrote it.
    """
    try:
        return shard_sizes(plan["splits"], plan["samples_per_shard"], plan["first"])
    except KeyError:
        raise PetsegError(f"{out} holds an unfinished pack of another version of petseg: remove it.") from None


@contextlib.contextmanager
def begun(
    source: Source,
    listing: Listing,
    options: PackOptions,
    out: Output,
    *,
    workers: int,
    alone: bool,
    base: Base | None = None,
    run: Runner = run_jobs,
) -> Iterator[Begun]:
    """Plan a pack, or read its plan, and hold the output's lock meanwhile.

    Args:
        source: where the pairs come from.
        listing: the source's.
        options: what was asked for.
        out: where it goes.
        workers: processes that look at the sources; at least 1.
        alone: no other process may pack into it, not even a part.
        base: the finished pack that is there and added to; None for a new one.
        run: does what is worth more than one process.

    Raises:
        PetsegError: the output holds something else, or another pack; the source tells no one answer.
    """
    pairs = compact(listing.pairs)
    if base:
        base.check_classes(source.classes)
        options = base.options(options)
    each = samples_for_bytes(source, pairs, options) if options.shard_bytes else options.samples_per_shard
    plan = make_plan(
        replace(listing, pairs=pairs),
        options.split,
        options.seed,
        each,
        options.group,
        there=base.splits if base else None,
        first=base.first if base else None,
    )
    if base and not plan.samples:
        raise PetsegError(f"{source.name}: all of its samples are in {out} already, or on no list.")
    chosen = plan.chosen()
    machine = Machine.this()
    asked = _asked(source, plan, options, base)
    found = _found(out, asked, machine, base)
    answer = found or survey(source, chosen, options, workers=workers, run=run)
    data = json.dumps({**asked, "options": asdict(answer), "machine": asdict(machine)}, indent=1).encode() + b"\n"
    try:
        with out.claim(alone=alone):
            # Again, now that nobody else can: another run may have finished between the first look and the claim.
            try:
                _found(out, asked, machine, base)
            except PetsegError:
                if base is None and out.read(MANIFEST_NAME) is not None:
                    out.clear()  # made by this run alone
                raise
            if alone and out.read(REFUSED) is not None:
                _make_way(out, asked)
            if base:
                base.check_unchanged(out)
                if json.loads(out.read(PLAN_NAME) or b"{}").get("base", asked["base"]) != asked["base"]:
                    out.remove([PLAN_NAME])
            there = json.loads(out.create(PLAN_NAME, data))
            if there != json.loads(data):
                _refuse(out, there, asked, machine)
            try:
                yield Begun(
                    source=source, listing=listing, plan=plan, options=answer, machine=machine, pairs=chosen, base=base
                )
            except RefusedError:
                if not alone:
                    raise
                if not plan.sizes.keys().isdisjoint(out.sizes()):
                    out.write(REFUSED, b"")
                else:
                    out.clear()
                raise
    except OSError as error:
        raise cannot_write(str(out), error) from error


def _asked(source: Source, plan: Plan, options: PackOptions, base: Base | None) -> dict[str, Any]:
    """The data that must be equal to resume a pack; plain JSON data."""
    digest = hashlib.sha256()
    for key, _, _, size, split, *_ in plan.pairs.rows():
        digest.update(f"{key}\0{size}\0{split}\n".encode())
    asked: dict[str, Any] = json.loads(
        json.dumps(
            {
                "listing": digest.hexdigest(),
                "classes": source.classes.to_dict(),
                "reading": asdict(source.classes.reading),
                "asked": asdict(options),
                "splits": {split: len(order) for split, order in plan.orders.items()},
                "samples_per_shard": plan.samples_per_shard,
                "first": dict(plan.first),
                "order": plan.digest(),
                "base": base.digest if base else "",
            }
        )
    )
    return asked


def _found(out: Output, asked: dict[str, Any], machine: Machine, base: Base | None) -> PackOptions | None:
    """The options of the same pack, if it was begun; None where there is nothing yet.

    Raises:
        PetsegError: there is something else.
    """
    found = out.top()
    data = out.read(PLAN_NAME) if WORK_FOLDER in found else None
    if data is not None:
        plan = json.loads(data)
        if base and plan.get("base") != asked["base"]:
            return None  # of what was there before: it was killed when all was done
        if out.read(REFUSED) is None:
            _refuse(out, plan, asked, machine)
        elif not _same(plan, asked):
            return None  # it makes way
        return PackOptions.from_dict(plan["options"])
    if base:
        return None
    found -= {WORK_FOLDER}  # killed before its plan was written: then there is nothing else of it either
    if MANIFEST_NAME in found:
        raise PetsegError(f"{out} already holds a finished pack: choose another folder, or remove it to pack again.")
    if found:
        raise PetsegError(f"{out} already holds something else ({min(found)}): choose an empty or new folder.")
    return None


def _refuse(out: Output, plan: dict[str, Any], asked: dict[str, Any], machine: Machine) -> None:
    """Refuse to resume another pack.

    Raises:
        PetsegError: it is another one.
    """
    if not _same(plan, asked):
        raise PetsegError(
            f"{out} holds an unfinished pack of {_difference(plan, asked)}: choose another folder, or remove it."
        )
    try:
        Machine(**plan["machine"]).refuse_other(machine)
    except PetsegError as error:
        raise PetsegError(f"{out} holds an unfinished pack: {error}") from None


def _same(plan: dict[str, Any], asked: dict[str, Any]) -> bool:
    return all(plan.get(name) == value for name, value in asked.items())


def _difference(plan: dict[str, Any], asked: dict[str, Any]) -> str:
    if bool(plan.get("base")) != bool(asked["base"]):
        return "what is added to it (--append)" if plan.get("base") else "its own, without --append"
    for name, value in asked["asked"].items():
        if (there := plan.get("asked", {}).get(name)) != value:
            return f"other options (--{name.replace('_', '-')}: {there} there, {value} here)"
    return "another source, or its files have changed"


def _make_way(out: Output, asked: dict[str, Any]) -> None:
    """Remove the mark of a refused pack, and the pack itself if another is to be made."""
    plan = json.loads(out.read(PLAN_NAME) or b"{}")
    if not _same(plan, asked):
        for name in planned_sizes(plan, out):
            out.remove([name, index_name(name), note_name(name)])
        out.remove([PLAN_NAME])
    out.remove([REFUSED])
