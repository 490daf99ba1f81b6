"""The commands: parse flags, build a configuration, call one function, print its result."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import petseg.cores  # noqa: F401 - the load is measured from here on, before torch is imported
from petseg.cli.options import with_flags, with_train_flags
from petseg.cli.shard_flags import ShardFlags
from petseg.errors import PetsegError
from petseg.signals import Terminated, sigterm_raises

HELP = {"help_option_names": ["-h", "--help"]}

umbrella = typer.Typer(
    name="petseg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
shard_app = typer.Typer(
    name="petseg-shard", add_completion=False, pretty_exceptions_enable=False, context_settings=HELP
)
train_app = typer.Typer(
    name="petseg-train", add_completion=False, pretty_exceptions_enable=False, context_settings=HELP
)


def _say_version(context: typer.Context, asked: bool) -> None:
    if asked:
        import importlib.metadata

        typer.echo(f"{context.find_root().info_name} {importlib.metadata.version('petseg')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version.")
]
ShardsArgument = Annotated[
    str, typer.Argument(metavar="DIR", help="Shard folder, or its address in a store.", show_default=False)
]
AnyRunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Run folder, a checkpoint in it, or the address of one.", show_default=False),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, or a checkpoint in it.", show_default=False)
]
ShardsOption = Annotated[
    str | None,
    typer.Option(help="Shard folder, or its address in a store; default: the run's own.", show_default=False),
]
ShardCacheOption = Annotated[
    str, typer.Option(help="Cache folder for remote shards. Default: the user's cache folder.", show_default=False)
]
TtaOption = Annotated[bool, typer.Option("--tta", help="Average with the mirrored image, in twice the time.")]
TtaScaleOption = Annotated[
    list[float] | None,
    typer.Option("--tta-scale", help="Average over the image enlarged by this factor; give several."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


@umbrella.callback()
def _umbrella(version: VersionOption = False) -> None:
    """Pack images and masks once, train segmentation networks at the speed of the hardware."""


@umbrella.command("shard")
@shard_app.command()
@with_flags(ShardFlags)
def shard(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images and masks (Oxford's layout, or folders named like them), oxford (fetches it), "
            "folder:IMAGES,MASKS, tars:GLOB, synthetic[:N].",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Folder for the shards, or s3://, gs:// or az://.", show_default=False)
    ],
    options: ShardFlags,
    version: VersionOption = False,  # noqa: ARG001
) -> None:
    """Pack images and masks into WebDataset shards with DALI indices."""
    if options.workers != 1 and not (options.on or options.finish or options.status or options.print_slurm):
        from petseg.data.shards.pool import warm_up

        warm_up()
    from petseg.cli import console
    from petseg.cli.cluster import Cluster, show_status, slurm_script

    given = list(context.obj)
    cluster = Cluster.of(options)
    if cluster.slurm:
        typer.echo(slurm_script(given[1:] if context.parent else given, cluster.slurm), nl=False)
        return
    if cluster.status:
        show_status(console.out(), out, cluster)
        return
    from petseg.cli.shards import pack_command

    try:
        rejected = pack_command(console.out(), source, out, options, cluster)
    except KeyboardInterrupt as stopped:
        raise type(stopped)("interrupted: what is finished is kept; run the same command again to resume.") from None
    if options.strict and rejected:
        raise typer.Exit(1)


@umbrella.command("train")
@train_app.command()
@with_train_flags
def train(
    flags: Mapping[str, Any],
    *,
    context: typer.Context,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --run-dir, or the newest run.", rich_help_panel="Run")
    ] = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume",
            help="Resume the run in --run-dir if it has a checkpoint, else start a new one there.",
            rich_help_panel="Run",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of options; flags override it.", show_default=False, rich_help_panel="Run"),
    ] = None,
    ranks: Annotated[
        int,
        typer.Option(
            help="Processes on this machine, one a GPU; torchrun for several machines.", rich_help_panel="Run"
        ),
    ] = 1,
    version: VersionOption = False,  # noqa: ARG001
) -> None:
    """Train a network. Without --shards, pets are drawn, packed and learned in minutes."""
    from petseg.cli.runs import train_command

    given = list(context.obj)
    args = given[1:] if context.parent else given
    how: bool | Literal["auto"] = "auto" if auto_resume else resume
    raise typer.Exit(train_command(flags, config=config, resume=how, ranks=ranks, args=args))


@umbrella.command("eval")
def evaluate(
    run: AnyRunArgument,
    shards: ShardsOption = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Make the last line one JSON object.")] = False,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="Score at each image's own size in the shards.")
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="Input size, N or HxW. Default: the run's own.", show_default=False)
    ] = None,
    loader: Annotated[
        str | None, typer.Option(metavar="dali|webdataset", help="Default: the run's own.", show_default=False)
    ] = None,
    amp: Annotated[
        str | None, typer.Option(metavar="auto|bf16|fp16|off", help="Default: the run's own.", show_default=False)
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option("--channels-last/--no-channels-last", help="Default: the run's own.", show_default=False),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no-verify", help="Check hashes. Default: as the run did.", show_default=False),
    ] = None,
    on_bad_sample: Annotated[
        str | None, typer.Option(metavar="stop|skip", help="Default: the run's own.", show_default=False)
    ] = None,
    tta: TtaOption = False,
    tta_scale: TtaScaleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a run on a split, with the run's own options unless given others."""
    from petseg.cli.runs import evaluate_command

    changes = {
        "size": size, "loader": loader, "amp": amp, "channels_last": channels_last, "verify": verify,
        "on_bad_sample": on_bad_sample,
    }  # fmt: skip
    evaluate_command(
        run,
        shards=shards,
        split=split,
        as_json=as_json,
        full_size=full_size,
        tta=tta,
        tta_scales=tta_scale or (1.0,),
        device=device,
        changes=changes,
    )


@umbrella.command()
def predict(
    run: AnyRunArgument,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Images, or folders of images.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for masks and overlays.", show_default=False)],
    probabilities: Annotated[
        str,
        typer.Option(
            metavar="png|npy", help="Write each class's probabilities too: 16-bit PNG or NPY.", show_default=False
        ),
    ] = "",
    amp: Annotated[
        str | None,
        typer.Option(metavar="auto|bf16|fp16|off", help="Default: on where the run had it.", show_default=False),
    ] = None,
    tta: TtaOption = False,
    tta_scale: TtaScaleOption = None,
    tile: Annotated[
        int,
        typer.Option(metavar="PX", help="Cut images into tiles of this short side; 0 for as in training."),
    ] = 0,
    overlap: Annotated[float, typer.Option(help="Share of a tile that its neighbour covers too.")] = 0.25,
    allow_damaged: Annotated[
        bool, typer.Option("--allow-damaged", help="Take images of which a part is missing, too.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Write masks (PNG, the class codes) and overlays of any image, at its own size."""
    from petseg.cli.runs import predict_command

    predict_command(
        run,
        images,
        out,
        device=device,
        probabilities=probabilities,
        amp=amp,
        tta=tta,
        tta_scales=tta_scale or (1.0,),
        tile=tile,
        overlap=overlap,
        allow_damaged=allow_damaged,
    )


@umbrella.command()
def report(
    run: RunArgument,
    shards: ShardsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Make a run's report.html again, from what its folder and its shards hold."""
    from petseg.cli.runs import report_command

    report_command(run, shards=shards, device=device)


@umbrella.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders.", show_default=False)],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("compare.html"),
) -> None:
    """Compare runs: a table, the options in which they differ, and a page with their curves."""
    from petseg.cli.runs import compare_command

    compare_command(runs, out)


@umbrella.command()
def export(
    run: RunArgument,
    fmt: Annotated[str, typer.Option("--format", metavar="onnx|torch-export", help="What to write.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File or folder; default: the run's.", show_default=False)] = None,
    image: Annotated[Path | None, typer.Option(help="Image to check the file on.", show_default=False)] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Take any size of image, in multiples of the network's stride.")
    ] = False,
) -> None:
    """Export a trained network, checked against it on a real image."""
    from petseg.cli.runs import export_command

    export_command(run, fmt, out, image, dynamic_size=dynamic_size)


@umbrella.command()
def verify(folder: ShardsArgument) -> None:
    """Check shards: hashes, index against tar, every sample decodes, masks hold only known codes."""
    from petseg.cli import console
    from petseg.cli.shards import verify_command

    verify_command(console.out(), folder)


@umbrella.command()
def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of tars.", show_default=False)],
    classes: Annotated[
        Path | None, typer.Option(help="Class map (TOML: codes, names, colours, ignored).", show_default=False)
    ] = None,
) -> None:
    """Give tars made by other tools an index and a manifest, without rewriting them."""
    from petseg.cli import console
    from petseg.cli.shards import index_command

    index_command(console.out(), folder, classes)


@umbrella.command()
def show(
    folder: ShardsArgument,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("contact-sheet.png"),
    split: Annotated[str, typer.Option(help="Split to show.")] = "train",
    count: Annotated[int, typer.Option(help="Samples to show.")] = 24,
) -> None:
    """Write a contact sheet: samples with their masks."""
    from petseg.cli import console
    from petseg.cli.shards import show_command

    show_command(console.out(), folder, out, split, count)


@umbrella.command()
def fetch(
    address: Annotated[
        str, typer.Argument(metavar="URL", help="Shards in a store: s3://, gs://, az://, https:// or hf://.")
    ],
    shard_cache: ShardCacheOption = "",
    remote_patience: Annotated[float, typer.Option(help="Give up after this many minutes without progress.")] = 10.0,
) -> None:
    """Fetch all shards of a store to this machine, for --offline."""
    from petseg.cli import console
    from petseg.cli.remote import fetch_command

    fetch_command(console.out(), address, shard_cache, remote_patience)


@umbrella.command()
def cache(
    what: Annotated[str, typer.Argument(metavar="list|clear|verify", help="List, remove or verify the cached shards.")],
    shard_cache: ShardCacheOption = "",
) -> None:
    """List, clear or verify this machine's cache of remote shards."""
    from petseg.cli import console
    from petseg.cli.remote import cache_command

    cache_command(console.out(), what, shard_cache)


@umbrella.command()
def classes(
    masks: Annotated[Path, typer.Argument(metavar="MASKS", help="Folder of masks.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="TOML file to write.", show_default=False)] = None,
) -> None:
    """Show what masks hold, and write a class map to start from."""
    from petseg.cli import console
    from petseg.cli.shards import classes_command

    classes_command(console.out(), masks, out)


@umbrella.command()
def doctor() -> None:
    """Show what this machine has and what petseg will use."""
    from petseg.cli import console
    from petseg.cli.doctor import examine, render

    screen = console.out()
    with screen.status("checking ..."):
        checks = examine()
    screen.print(render(checks))


def main() -> None:
    """`petseg`."""
    sys.exit(run(umbrella, "petseg"))


def shard_main() -> None:
    """`petseg-shard`."""
    sys.exit(run(shard_app, "petseg-shard"))


def train_main() -> None:
    """`petseg-train`."""
    sys.exit(run(train_app, "petseg-train"))


def _forget_output() -> None:
    """Discard what is still to be written to standard output, also at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _was_output(error: OSError) -> bool:
    """Whether the error is of writing standard output, by the functions in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return error.filename is None and any(frame.name in {"_write_buffer", "echo", "_flush"} for frame in frames)


def _flush() -> None:
    sys.stdout.flush()


def run(app: typer.Typer, name: str, args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 (rejects under --strict), 2 (bad input), 128 + signal."""
    from petseg.cli import console

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # a path's bytes come out as they are, valid UTF-8 or not
    given = list(sys.argv[1:] if args is None else args)
    command = typer.main.get_command(app)
    if f"_{name.upper()}_COMPLETE" in os.environ:  # a shell asks what may follow
        command.main(given, prog_name=name)
    try:
        # Not `command.main`, which answers Ctrl-C without a word.
        with sigterm_raises(), command.make_context(name, given, obj=tuple(given)) as context:
            command.invoke(context)
        _flush()
    except PetsegError as error:
        console.error(str(error))
        return 2
    except KeyboardInterrupt as stopped:
        console.error(str(stopped) or "interrupted.")
        return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        # Whoever read our output went away: nothing is left to say.
        _forget_output()
        return 141
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # so rich answers it
            return 141
        raise
    except OSError as failed:
        if not _was_output(failed):
            raise
        _forget_output()
        console.error(f"standard output cannot be written ({failed.strerror}): send it elsewhere.")
        return 2
    except Exception as error:
        # Exits and bad flags are exceptions of the parser, which every version of typer keeps in another place.
        kind, message = type(error).__name__, getattr(error, "format_message", None)
        if kind == "Exit":
            return int(getattr(error, "exit_code", 0))
        if kind == "Abort":
            console.error("interrupted.")
            return 130
        if message is None:
            raise
        if text := str(message()).strip().rstrip("."):
            path = getattr(getattr(error, "ctx", None), "command_path", name)
            console.error(f"{text}. See {path} --help.")
        return int(getattr(error, "exit_code", 2))
    return 0
