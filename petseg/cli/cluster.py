"""Packing on several machines from the command line: parts, their progress, and a script for SLURM."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.markup import escape

from petseg.cli.console import counted
from petseg.cli.shard_flags import ShardFlags
from petseg.data.shards.judge import some_of
from petseg.data.shards.on_ray import RayCluster
from petseg.data.shards.output import output_of
from petseg.data.shards.parts import PartReport, check_part, status
from petseg.data.shards.pool import Runner, run_jobs
from petseg.errors import PetsegError

_SLURM = """\
#!/bin/bash
# Packs in {parts} parts, and writes the manifest when all are there: bash {name}
# A part that failed is packed again by: sbatch --array=I {name}
#SBATCH --job-name=petseg-shard
#SBATCH --array=1-{parts}
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=04:00:00
set -euo pipefail
if [ -z "${{SLURM_ARRAY_TASK_ID:-}}" ]; then
  array=$(sbatch --parsable "$0")
  sbatch --dependency=afterok:"$array" --job-name=petseg-finish --mem=16G --time=04:00:00 <<'END'
#!/bin/bash
{command} --finish
END
else
  {command} --part "$SLURM_ARRAY_TASK_ID/{parts}" --workers "${{SLURM_CPUS_PER_TASK:-0}}"
fi
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """This machine's share of a pack."""

    part: tuple[int, int] | None = None
    """(i, n): the i-th of n parts, from 1 on."""
    finish: bool = False
    status: bool = False
    slurm: int = 0
    """Number of parts of the script to print; 0 for no script."""
    run: Runner = run_jobs
    """Runs the jobs of a whole pack."""

    @classmethod
    def of(cls, flags: ShardFlags) -> Self:
        """Read the flags.

        Raises:
            PetsegError: two that exclude each other, or not a part.
        """
        part, on, slurm = flags.part, flags.on, flags.print_slurm
        if slurm < 0:
            raise PetsegError(f"--print-slurm {slurm}: give the number of parts.")
        chosen = [
            name
            for name, given in (
                ("--part", bool(part) and not flags.status), ("--finish", flags.finish), ("--status", flags.status),
                ("--print-slurm", bool(slurm)), ("--on", bool(on)),
            )
            if given
        ]  # fmt: skip
        if len(chosen) > 1:
            raise PetsegError(f"{chosen[0]} and {chosen[1]}: give one of them.")
        run = RayCluster(on, flags.workers) if on else run_jobs
        parsed = _parsed(part) if part else None
        return cls(part=parsed, finish=flags.finish, status=flags.status, slurm=slurm, run=run)


def _parsed(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not found:
        raise PetsegError(f"--part {text}: give such as 3/64, for the third of 64 parts.")
    part = int(found[1]), int(found[2])
    check_part(part)
    return part


def slurm_script(args: Sequence[str], parts: int, name: str = "pack.sh") -> str:
    """The SLURM script: submits itself as an array of parts, and `--finish` after them.

    Args:
        args: of `petseg-shard`.
        parts: how many there are.
        name: of the script's file, for its own comments.
    """
    kept, skip = ["petseg-shard"], False
    for arg in args:
        if not skip and not arg.startswith("--print-slurm"):
            kept.append(arg)
        skip = arg == "--print-slurm"
    return _SLURM.format(parts=parts, name=name, command=shlex.join(kept))


def show_status(console: Console, out: str, cluster: Cluster) -> None:
    """Print the progress of a pack.

    Raises:
        PetsegError: none was begun there.
    """
    found = status(output_of(out), cluster.part or (1, 1))
    of = "" if cluster.part is None else f" of part {cluster.part[0]}/{cluster.part[1]}"
    if found.finished:
        console.print(f"{escape(out)} holds a finished pack.")
    elif found.missing:
        console.print(
            f"{len(found.missing):,} of {counted(found.shards, 'shard')}{of} are missing: "
            f"{escape(some_of(found.missing))}."
        )
    else:
        more = "--finish writes the manifest" if cluster.part is None else "nothing is missing"
        console.print(f"All {counted(found.shards, 'shard')}{of} are packed: {more}.")


def show_part(console: Console, report: PartReport, part: tuple[int, int], out: str) -> None:
    """Print what was packed."""
    again = f" ({report.resumed_shards:,} of them had been packed before)" if report.resumed_shards else ""
    console.print(
        f"Part {part[0]}/{part[1]} is packed: {counted(report.shards, 'shard')} of {report.of:,} with "
        f"{counted(report.samples, 'sample')}{again}, into {escape(out)}. --finish writes the manifest when all parts "
        "are there; --status says what is missing."
    )
    if report.rejected:
        first = report.rejected[0]
        console.print(
            f"[yellow]rejected[/] {len(report.rejected):,}, such as {escape(first.key)}: {escape(first.reason)}"
        )
