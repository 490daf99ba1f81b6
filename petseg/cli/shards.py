"""Packing, verifying, indexing and showing shards, with their terminal output."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from petseg.classes import OXFORD, ClassTable
from petseg.cli.cluster import Cluster, show_part
from petseg.cli.console import command, counted, mask_table, packing_table, progress
from petseg.cli.shard_flags import ShardFlags
from petseg.data.shards.added import Base, base_of
from petseg.data.shards.copies import Copies
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import output_of
from petseg.data.shards.pack import PackReport, pack
from petseg.data.shards.parts import finish, pack_part
from petseg.data.shards.place import place_of
from petseg.data.shards.plan import SPLITS
from petseg.data.shards.pool import Runner, run_jobs
from petseg.data.shards.ranges import parse_bands, parse_range, told_range
from petseg.data.shards.shardcache import parse_bytes
from petseg.data.sources import TRAINVAL, Listing, Source
from petseg.data.sources.tars import tar_of
from petseg.errors import PetsegError
from petseg.system import usable_cores

SHOWN_REJECTS = 10
"""Rejects that are named on screen; all are in the manifest."""

_SAMPLES_PER_SHARD = PackOptions().samples_per_shard


def pack_command(
    console: Console,
    text: str,
    out: str,
    flags: ShardFlags,
    cluster: Cluster,
) -> int:
    """Pack what SOURCE names; returns the number of rejects.

    Raises:
        PetsegError: bad input, or nothing to pack.
    """
    from petseg.data.sources.resolve import resolve_source

    table = ClassTable.from_toml(flags.classes) if flags.classes else None
    if text == "oxford":
        where = escape(str(flags.download_dir))
        console.print(f"Oxford-IIIT Pet goes to {where} (0.8 GB, checked by MD5; later runs use it again).")
    lists = {"train": flags.train_list, "val": flags.val_list, "test": flags.test_list}
    given = {name: path for name, path in lists.items() if path is not None}
    if given and flags.split == "random":
        raise PetsegError("--split random: leave it out, or the lists.")
    plain = _pack_options(flags, "random")  # what is wrong with an option is said before files are listed
    base = base_of(output_of(out)) if flags.append else None
    if base and table is None:
        table = _classes_there(base, text)
    source = resolve_source(
        text,
        classes=table,
        pair=flags.pair or (),
        merge_masks=flags.merge_masks,
        lists=given,
        find_lists=flags.split != "random",
        seed=flags.seed,
        download_dir=flags.download_dir,
    )
    listing = source.listing()
    show_listing(console, listing)
    official = any(each.split for each in listing.pairs)
    options = replace(plain, split=flags.split or ("official" if official else "random"))
    if base:
        new = base.new(listing)
        there = len(listing.pairs) - new
        console.print(
            f"{counted(there, 'pair')} of {escape(source.name)} are in {escape(out)} already, {new:,} are new."
        )
        if not new:
            return 0
    if flags.dry_run:
        return len(listing.rejected)
    if cluster.finish:
        report = finish(source, out, options, allow_rejects=flags.allow_rejects, listing=listing, base=base)
        show_report(console, report, out)
        return len(report.rejected)
    try:
        if cluster.part is not None:
            with progress(console, "packing") as (advance, expect):
                packed = pack_part(
                    source,
                    out,
                    options,
                    cluster.part,
                    workers=process_count(flags.workers),
                    allow_rejects=flags.allow_rejects,
                    listing=listing,
                    progress=advance,
                    planned=expect,
                    base=base,
                )
            show_part(console, packed, cluster.part, out)
            return len(packed.rejected)
        report = pack_with_progress(
            console,
            source,
            out,
            options,
            workers=flags.workers,
            allow_rejects=flags.allow_rejects,
            listing=listing,
            base=base,
            run=cluster.run,
        )
    except KeyboardInterrupt:
        console.print("Stopped: finished shards are kept; run the same command again to resume.")
        raise
    show_report(console, report, out)
    return len(report.rejected)


def _pack_options(flags: ShardFlags, split: str) -> PackOptions:
    """The flags that decide the bytes of a pack, as `PackOptions`.

    Raises:
        PetsegError: a bad value, or two options of which one is enough.
    """
    if flags.shard_bytes and flags.samples_per_shard is not None:
        raise PetsegError("--shard-bytes: leave it out, or --samples-per-shard.")
    values, percentiles = parse_range(flags.value_range) if flags.value_range else (None, None)
    return PackOptions(
        range=values,
        percentiles=percentiles,
        bands=parse_bands(flags.bands),
        split=flags.split or split,
        short_side=flags.short_side,
        quality=flags.quality,
        encoding=flags.encoding,
        mask_orientation=flags.mask_orientation,
        resize_masks=flags.resize_masks,
        samples_per_shard=_SAMPLES_PER_SHARD if flags.samples_per_shard is None else flags.samples_per_shard,
        shard_bytes=parse_bytes(flags.shard_bytes) if flags.shard_bytes else 0,
        seed=flags.seed,
        group=flags.group,
    )


def _classes_there(base: Base, text: str) -> ClassTable | None:
    """The classes of what is added to, for sources that have none of their own."""
    own = text.partition(":")[0] in {"oxford", "synthetic"} or base.manifest.classes.to_dict() == OXFORD.to_dict()
    return None if own else base.manifest.classes


def pack_with_progress(
    console: Console,
    source: Source,
    out: Path | str,
    options: PackOptions,
    *,
    workers: int = 0,
    allow_rejects: bool = False,
    listing: Listing | None = None,
    base: Base | None = None,
    run: Runner = run_jobs,
) -> PackReport:
    """Pack under a progress bar.

    Args:
        console: where the bar is shown.
        source: what to pack.
        out: shard folder.
        options: of the pack.
        workers: processes; 0 for one a usable core.
        allow_rejects: finish also if more than half was rejected.
        listing: the source's, where it is there.
        base: what is added to.
        run: does the work.
    """
    with progress(console, "packing") as (advance, expect):
        return pack(
            source,
            out,
            options,
            workers=process_count(workers),
            allow_rejects=allow_rejects,
            listing=listing,
            progress=advance,
            planned=expect,
            base=base,
            run=run,
        )


def process_count(workers: int) -> int:
    """The number of processes for `--workers`.

    Raises:
        PetsegError: it is negative.
    """
    if workers < 0:
        raise PetsegError(f"--workers: {workers} is out of range; give 0 for one a core, or a number.")
    return workers or usable_cores()


def show_listing(console: Console, listing: Listing) -> None:
    """Print what was found, before anything is packed: the pairs and their rule, and what is left over and why."""
    pairs = listing.pairs
    if not pairs or not pairs[0].size:
        return
    splits = Counter(pair.split for pair in pairs if pair.split)
    where = (
        f", in {', '.join(f'{name} {n:,}' for name in (TRAINVAL, *SPLITS) if (n := splits[name]))} ({listing.split_by})"
        if splits
        else ""
    )
    console.print(f"Found {counted(len(pairs), 'pair')} {escape(listing.rule)}{where}:")
    for what, places in (("images", [pair.image for pair in pairs]), ("masks", [pair.mask for pair in pairs])):
        folders = Counter(_short(str(Path(place).parent), 2) for place in places).most_common()
        more = f" and {counted(len(folders) - 4, 'more folder')}" if len(folders) > 4 else ""
        console.print(f"  {what} in {', '.join(f'{escape(name)} ({n:,})' for name, n in folders[:4])}{more}")
    for pair in (pairs[0], pairs[len(pairs) // 2], pairs[-1])[: len(pairs)]:
        more = f" and {counted(len(pair.more_masks), 'more mask')}" if pair.more_masks else ""
        console.print(f"  {escape(pair.key)}: {escape(_short(pair.image))} with {escape(_short(pair.mask))}{more}")
    for each in listing.left_over[:SHOWN_REJECTS]:
        files = counted(each.files, "file")
        console.print(f"Left over: {files} in {escape(each.where)}, such as {escape(each.example)}: {escape(each.why)}")
    if len(listing.left_over) > SHOWN_REJECTS:
        rest = listing.left_over[SHOWN_REJECTS:]
        console.print(f"... and {sum(each.files for each in rest):,} more in {counted(len(rest), 'folder')}")
    if listing.rejected:
        first = listing.rejected[0]
        console.print(
            f"Without a partner, or with an unusable name: {len(listing.rejected):,}, such as {escape(first.key)}: "
            f"{escape(first.reason)}"
        )


def _short(path: str, parts: int = 3) -> str:
    """The end of a path, without where a member lies in its tar."""
    return "/".join(Path(tar_of(path)).parts[-parts:])


def show_report(console: Console, report: PackReport, out: Path | str) -> None:
    """The table at the end of a pack, what was left out, and what to do next."""
    manifest = report.manifest
    console.print(
        packing_table(
            manifest,
            there=report.there,
            bytes_in=report.bytes_in,
            seconds=report.seconds,
            converted=report.converted,
            split_by=report.split_by,
            unlisted=len(report.unlisted),
            ignored=report.ignored,
        )
    )
    tones = manifest.encoding.tones
    if tones.range:
        console.print(
            f"Images of more than 8 bits: values {told_range(*tones.range)} are mapped to 0 to 255 (--range LOW HIGH "
            "sets another range)."
        )
    if report.resumed_shards:
        console.print(f"{report.resumed_shards} shards were finished by an earlier run.")
    if report.unlisted:
        console.print(
            f"On no list and in no split folder, so left out: {escape(', '.join(report.unlisted[:SHOWN_REJECTS]))}"
            + (" ..." if len(report.unlisted) > SHOWN_REJECTS else "")
        )
    for each in report.thinned:
        before, after = (f"{100 * share:.3g}%" for share in (each.share_before, each.share_after))
        console.print(
            f"--short-side {manifest.encoding.short_side} thins {escape(each.name)}: {before} of the pixels before and "
            f"{after} after, in {each.masks_before:,} of the masks looked at before and in {each.masks_after:,} after; "
            f"its mean width is now {each.width:.2g} pixels. A larger one, or 0, keeps it."
        )
    if report.copies:
        console.print(escape(_copies_line(report.copies, report.split_by)))
    for reject in report.rejected[:SHOWN_REJECTS]:
        console.print(f"[yellow]rejected[/] {escape(reject.key)}: {escape(reject.reason)}")
    if len(report.rejected) > SHOWN_REJECTS:
        console.print(f"... and {len(report.rejected) - SHOWN_REJECTS} more, all in {escape(str(out))}/manifest.json")
    train = command(f"petseg-train --shards {out}")
    console.print(f"Shards are in {escape(str(out))}. Train on them: {escape(train)}")


def _copies_line(copies: Copies, split_by: str) -> str:
    where = ", ".join(f"{n:,} of {one} and {other}" for (one, other), n in copies.splits.items())
    (first, second), *_ = copies.pairs
    what = "Copies of one image (as it is, flipped, or augmented by name) stand in two splits"
    said = f"{what}: {where}, such as {first} and {second}."
    if split_by != "chance":
        return f"{said} They make scores too high; the {split_by} decide the splits."
    if copies.group is None:
        return f"{said} They make scores too high: remove one of each, or give a --group that keeps them together."
    return f"{said} They make scores too high: --group '{copies.group}' keeps them together."


def classes_command(console: Console, folder: Path, out: Path | None) -> None:
    """Show what a folder of masks holds, and print or write a class map.

    Raises:
        PetsegError: no masks, or what they hold makes no class map.
    """
    from petseg.data.shards.labels import label_names
    from petseg.data.shards.scan import mask_files, scan_masks
    from petseg.system import write_atomic

    folder = folder.expanduser()
    files = mask_files(folder)
    with progress(console, "looking") as (advance, expect):
        expect(len(files))
        scan = scan_masks(((path.name, path.read_bytes()) for path in files), advance)
    for reject in scan.rejected[:SHOWN_REJECTS]:
        console.print(f"[yellow]not read[/] {escape(reject.key)}: {escape(reject.reason)}")
    if len(scan.rejected) > SHOWN_REJECTS:
        console.print(f"... and {len(scan.rejected) - SHOWN_REJECTS} more")
    labels, files_of_labels = label_names(folder)
    text = scan.to_toml(labels)
    if not scan.soft:  # a table of 256 greys says nothing
        console.print(mask_table(scan))
    for remark in scan.remarks():
        console.print(escape(remark))
    if named := [name for value, name in labels.items() if value in scan.values]:
        where = escape(", ".join(str(path) for path in files_of_labels[:3]))
        console.print(f"{counted(len(named), 'name')} of classes come from {where}.")
    if out is None:
        console.print("A class map to start from; --out FILE writes it:\n")
        console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
        return
    write_atomic(out, text.encode())
    console.print(
        f"The class map to start from is in {escape(str(out))}: name its classes, then pack with --classes "
        f"{escape(str(out))}."
    )


def verify_command(console: Console, where: str) -> None:
    """Check a shard folder.

    Raises:
        PetsegError: something is wrong; every finding was printed before.
    """
    from petseg.data.shards.verify import verify

    folder = place_of(where)
    manifest = Manifest.load(folder)
    with progress(console, "verifying") as (advance, expect):
        expect(sum(split.samples for split in manifest.splits.values()))
        problems = verify(folder, manifest, workers=usable_cores(), progress=advance)
    for problem in problems:
        console.print(f"[red]problem[/] {escape(problem)}")
    if problems:
        raise PetsegError(f"{folder}: {len(problems)} problem(s), the first: {problems[0]}; copy or pack it again.")
    samples = ", ".join(f"{name} {split.samples:,}" for name, split in manifest.splits.items())
    console.print(
        f"[green]ok[/] {escape(str(folder))}: hashes, indices and every sample are as the manifest says ({samples})."
    )


def index_command(console: Console, folder: Path, classes: Path | None) -> None:
    """Index tars made by other tools.

    Raises:
        PetsegError: no tars, or tars that have to be repacked.
    """
    from petseg.data.shards.adopt import adopt
    from petseg.data.sources.files import named_split

    table = ClassTable.from_toml(classes) if classes else None
    with progress(console, "indexing") as (advance, expect):
        manifest = adopt(folder, table, workers=usable_cores(), progress=advance, planned=expect)
    train = manifest.splits["train"].shards if "train" in manifest.splits else ()
    if guessed := [shard.name for shard in train if named_split(shard.name) != "train"]:
        more = f" and {len(guessed) - 5} more" if len(guessed) > 5 else ""
        console.print(
            f"Taken for train, as their names say neither train, val nor test: {escape(', '.join(guessed[:5]))}{more}."
        )
    samples = ", ".join(f"{name} {split.samples:,}" for name, split in manifest.splits.items())
    console.print(f"{escape(str(folder))} now has an index beside every tar and a manifest.json ({samples} samples).")


def show_command(console: Console, folder: str, out: Path, split: str, count: int) -> None:
    """Write a contact sheet."""
    from petseg.data.shards.show import contact_sheet

    shown = contact_sheet(place_of(folder), out, split=split, count=count)
    console.print(f"{shown} samples of {escape(split)} are on {escape(str(out))}.")
