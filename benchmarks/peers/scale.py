"""What a data set of a given number of samples costs before the first one is decoded. No image is read.

Prints one line of JSON: for each step its seconds, and the most memory that it took above what was in use before, in MB
(null where the system does not tell).
"""

import argparse
import gc
import json
import time
from pathlib import Path

import numpy as np
from _serve import _ANSWERS
from torch.utils.data import DistributedSampler

from petseg.data.order import epoch_order, rank_slice
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader

parser = argparse.ArgumentParser()
parser.add_argument("shards", type=Path)
parser.add_argument("--worlds", default="1")
parser.add_argument("--no-peers", action="store_true")
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


def seek(world):
    order = epoch_order(sizes, 0, 0)
    return rank_slice(order, 32, world - 1, world, consumed=samples // 2)


found = {}
manifest = measured("manifest", lambda: Manifest.load(args.shards))
sizes, samples = manifest.split("train").sizes, manifest.split("train").samples
reader = measured("open", lambda: ShardReader(args.shards, manifest, "train", verify=False))
assert len(reader) == samples
del reader
order = measured("order", lambda: epoch_order(sizes, 0, 0))
assert len(order) == samples
del order
for world in map(int, args.worlds.split(",")):
    share = measured(f"seek {world}", lambda world=world: seek(world))
    assert share.shape == ((samples - samples // 2) // (32 * world), 32)
    del share
measured("NumPy", lambda: np.random.default_rng(0).permutation(samples))
if not args.no_peers:
    sampler = DistributedSampler(range(samples), num_replicas=1, rank=0)
    measured("torch", lambda: next(iter(sampler)))
_ANSWERS.write(json.dumps(found) + "\n")
_ANSWERS.flush()
