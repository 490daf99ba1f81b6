"""A pack on a Ray cluster of two nodes whose workers are killed, and one node: the bytes of one machine's pack."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.sources import Source
from petseg.data.sources.resolve import resolve_source
from tests.data.shards.test_pack import content
from tests.ray_cluster import RayNodes, ray_cluster

LONGEST = 900.0
"""Seconds after which a pack hangs."""


@dataclass
class Tally:
    """What was done, and what went wrong."""

    workers_killed: int = 0
    nodes_killed: int = 0
    samples: int = 0
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


def torture_cluster(folder: Path, rng: random.Random, source: str, options: PackOptions, kills: int) -> Tally:
    """Pack a source once on one machine and once on the cluster, with so many workers killed, and the second node.

    Args:
        folder: where everything is made.
        rng: decides about whom and when.
        source: as a person names it.
        options: of the pack, with `split` as the source has it.
        kills: workers to be killed.
    """
    tally = Tally()
    found: Source = resolve_source(source)
    report = pack(found, folder / "alone", options, workers=2)
    tally.samples = sum(split.samples for split in report.manifest.splits.values())
    with ray_cluster(2, 1) as cluster:
        command = [Path(sys.executable).with_name("petseg-shard"), source, folder / "together", "--on", "ray"]
        command += ["--split", options.split, "--short-side", options.short_side]
        command += ["--samples-per-shard", options.samples_per_shard]
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
        )
        _kill(cluster, process, rng, kills, tally)
        try:
            out, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            tally.faults.append("it hung")
            return tally
    if process.returncode:
        tally.faults.append(out.strip()[-500:])
    elif content(folder / "together") != content(folder / "alone"):
        tally.faults.append("the bytes differ")
    return tally


def _kill(cluster: RayNodes, process: subprocess.Popen[str], rng: random.Random, kills: int, tally: Tally) -> None:
    """Kill workers at random, half of them before the second node."""
    while process.poll() is None and (tally.workers_killed < kills or not tally.nodes_killed):
        time.sleep(rng.uniform(0.05, 0.4))
        if tally.workers_killed >= kills // 2 and not tally.nodes_killed:
            if cluster.nodes[1].workers():
                cluster.nodes[1].kill()
                tally.nodes_killed += 1
        elif workers := [number for node in cluster.nodes for number in node.workers()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
                tally.workers_killed += 1
