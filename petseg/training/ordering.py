"""Resolves `--window` and `--lanes`: the order in which a run visits its shards."""

from __future__ import annotations

import dataclasses

from petseg.config import TrainConfig
from petseg.data.loaders.build import nodes_for
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import RemoteShards, shards_for
from petseg.data.shards.stage import largest_window
from petseg.device import World, local_share
from petseg.errors import OptionError
from petseg.training.reporter import Reporter

WELL_SHUFFLED = 16
"""Shards at once from which on a pack of petseg's is shuffled nearly as well as by all (benchmarks/LOG.md)."""


def settle_order(config: TrainConfig, world: World, manifest: Manifest, reporter: Reporter) -> TrainConfig:
    """The configuration with lanes and window settled: one lane and all shards, unless shards come from a store.

    Raises:
        PetsegError: lanes that the nodes cannot share, or a cache that does not hold two shards.
    """
    folder, split = shards_for(config), manifest.split("train")
    nodes = world.size // local_share()[1]
    remote = isinstance(folder, RemoteShards)
    lanes = config.lanes or (min(nodes, len(split.shards)) if remote else 1)
    if lanes > len(split.shards):
        raise OptionError("lanes", f"{lanes} lanes need as many shards, and train has {len(split.shards)}.")
    if config.lanes > 1 and nodes > 1 and lanes % nodes:
        raise OptionError("lanes", f"{lanes} lanes cannot be shared by {nodes} nodes: give a multiple of {nodes}.")
    window = max(config.window, 0)
    if config.window < 0 and isinstance(folder, RemoteShards) and folder.limit is not None:
        window = largest_window(split, folder.limit)
        if window:
            window = max(1, window // (lanes // nodes_for(lanes, world.size)))
            reporter.note(
                f"--window {window}: so many shards are in play at once, as the cache holds twice as many"
                + ("; 16 and more shuffle well." if window < WELL_SHUFFLED else ".")
            )
    return dataclasses.replace(config, window=window, lanes=lanes)
