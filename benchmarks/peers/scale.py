"""What a data set of a given number of samples costs before the first one is decoded. No image is read.

Prints one line of JSON: for each step its seconds, and the most memory that it took above what was in use before, in MB
(null where the system does not tell).
"""

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from _serve import _ANSWERS
from torch.utils.data import DistributedSampler

from petseg.data.order import EpochOrder, epoch_order, rank_batches
from petseg.data.shards.begun import begun
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import output_of
from petseg.data.shards.reader import ShardReader
from petseg.data.sources.synthetic import SyntheticSource

MOST_AT_ONCE = 10**7
"""Samples that are ordered at once, for the comparison."""
WINDOW = 16

parser = argparse.ArgumentParser()
parser.add_argument("shards", type=Path)
parser.add_argument("--worlds", default="1")
parser.add_argument("--no-peers", action="store_true")
parser.add_argument("--no-plan", action="store_true")
args = parser.parse_args()
status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_mb(field):
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def measured(name, call):
    gc.collect()
    if status.exists():
        clear.write_text("5")  # the peak begins anew (proc(5))
        before = memory_mb("VmRSS")
    start = time.perf_counter()
    made = call()
    seconds = time.perf_counter() - start
    memory = memory_mb("VmHWM") - before if status.exists() else None
    found[name] = {"seconds": seconds, "memory_mb": memory}
    return made


def first_batch(epoch, window=None, rank=0, world=1, consumed=0):
    return next(rank_batches(EpochOrder(sizes, 0, epoch, window), 32, rank, world, consumed), None)


def plan(count):
    source = SyntheticSource(count)
    options = PackOptions(split="random")
    with (
        tempfile.TemporaryDirectory() as folder,
        begun(source, source.listing(), options, output_of(f"{folder}/out"), workers=1, alone=True) as made,
    ):
        return len(made.jobs()[0].pairs)


found = {}
manifest = measured("manifest", lambda: Manifest.load(args.shards))
sizes, samples = manifest.split("train").sizes, manifest.split("train").samples
reader = measured("open", lambda: ShardReader(args.shards, manifest, "train", verify=False))
assert len(reader) == samples
del reader
measured("begin", lambda: first_batch(0))
measured("begin windows", lambda: first_batch(0, WINDOW))
for world in map(int, args.worlds.split(",")):
    batch = measured(f"seek {world}", lambda world=world: first_batch(0, None, world - 1, world, samples // 2))
    assert batch is None or batch.shape == (32,)  # so few samples make no global batch
if samples <= MOST_AT_ONCE:
    order = measured("order", lambda: epoch_order(sizes, 0, 0))
    assert len(order) == samples
    del order
    measured("NumPy", lambda: np.random.default_rng(0).permutation(samples))
if not args.no_plan:
    assert measured("plan", lambda: plan(samples))
if not args.no_peers and samples <= MOST_AT_ONCE:
    sampler = DistributedSampler(range(samples), num_replicas=1, rank=0)
    measured("torch", lambda: next(iter(sampler)))
_ANSWERS.write(json.dumps(found) + "\n")
_ANSWERS.flush()
