"""Flags of `petseg-shard`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFlags:
    """The one table of `petseg-shard`'s flags: each field's annotation is its flag."""

    split: Annotated[
        str | None,
        typer.Option(
            metavar="official|random",
            help="official: the source's own lists or split folders, a seeded 10% of trainval as val; "
            "random: about 70/20/10. Default: official where there are any.",
            show_default=False,
        ),
    ] = None
    short_side: Annotated[int, typer.Option(help="Reduce to this short side in pixels; 0 keeps originals.")] = 256
    quality: Annotated[int, typer.Option(help="JPEG quality of what is encoded, 1 to 100.")] = 90
    encoding: Annotated[
        str,
        typer.Option(
            metavar="jpeg|ppm", help="jpeg: JPEG and PNG. ppm: pixels as they are: larger, lossless, nothing to decode."
        ),
    ] = "jpeg"
    mask_orientation: Annotated[
        str,
        typer.Option(
            metavar="auto|upright|stored",
            help="How masks of images that EXIF turns are drawn: as a viewer shows them, or as stored; auto looks.",
        ),
    ] = "auto"
    resize_masks: Annotated[
        bool, typer.Option("--resize-masks", help="Bring masks of their images' shape, but not size, to that size.")
    ] = False
    value_range: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--range",
            metavar="LOW HIGH",
            help="Values of images of more than 8 bits that become black and white, or percentiles of all: p1 p99. "
            "Default: what the whole set spans.",
            show_default=False,
        ),
    ] = None
    bands: Annotated[
        str,
        typer.Option(metavar="1,2,3", help="Bands of images of more than three that become red, green and blue."),
    ] = ""
    samples_per_shard: Annotated[
        int | None, typer.Option(help="Samples a shard, at most. Default: 256.", show_default=False)
    ] = None
    shard_bytes: Annotated[
        str, typer.Option(metavar="256MB", help="In its place: bytes a shard, about.", show_default=False)
    ] = ""
    seed: Annotated[int, typer.Option(help="Seed of splits and shuffling.")] = 0
    workers: Annotated[int, typer.Option(help="Processes; 0 for one a core. The bytes are the same for any.")] = 0
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 if anything was rejected.")] = False
    classes: Annotated[
        Path | None,
        typer.Option(help="Class map (TOML: codes, names, colours, ignored); see petseg classes.", show_default=False),
    ] = None
    pair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGES=MASKS",
            help="How files below SOURCE pair up, such as 'images/*.{jpg,png}=masks/*_gt.png'; may be given again.",
            show_default=False,
        ),
    ] = None
    merge_masks: Annotated[
        bool, typer.Option("--merge-masks", help="Unite several masks of one image: one object or one class each.")
    ] = False
    train_list: Annotated[Path | None, typer.Option(help="Keys of train, one per line.", show_default=False)] = None
    val_list: Annotated[
        Path | None, typer.Option(help="Keys of val; default: a tenth of train's list.", show_default=False)
    ] = None
    test_list: Annotated[Path | None, typer.Option(help="Keys of test.", show_default=False)] = None
    group: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Regular expression: samples whose keys match in the same text (its first group), such as a "
            "patient or a video, stay in one split.",
            show_default=False,
        ),
    ] = None
    allow_rejects: Annotated[
        bool,
        typer.Option(
            "--allow-rejects",
            help="Pack what is left, however many samples are rejected and even if a class has no pixels.",
        ),
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what pairs with what and what is left over; pack nothing.")
    ] = False
    append: Annotated[
        bool,
        typer.Option(
            "--append", help="Add the new samples of SOURCE to the finished pack in OUT; no sample changes its split."
        ),
    ] = False
    download_dir: Annotated[Path, typer.Option(help="Folder for the download of `oxford`.")] = Path("downloads")
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Pack the I-th of N parts, as one of several machines that share OUT; --finish ends it.",
            rich_help_panel="Several machines",
        ),
    ] = ""
    finish: Annotated[
        bool,
        typer.Option(
            "--finish", help="Write the manifest, when all parts are packed.", rich_help_panel="Several machines"
        ),
    ] = False
    status: Annotated[
        bool, typer.Option("--status", help="List the shards that are missing.", rich_help_panel="Several machines")
    ] = False
    on: Annotated[
        str,
        typer.Option(metavar="ray|ray://HOST:PORT", help="Pack on a Ray cluster.", rich_help_panel="Several machines"),
    ] = ""
    print_slurm: Annotated[
        int,
        typer.Option(
            metavar="N", help="Print a SLURM script that packs in N parts.", rich_help_panel="Several machines"
        ),
    ] = 0
