"""Shards of a store that fails in every way, read by a loader that is killed: never a wrong byte, never a hang.

As a program, it reads an epoch after the other from a store and compares every batch with what it should be.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petseg import Batch, Manifest, RemoteShards, build_loader
from petseg.data.objects import Objects
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.shardcache import ShardCache, verify
from petseg.data.shards.stage import window_bytes
from petseg.data.sources.synthetic import SyntheticSource
from tests.servers import Faults, Request, proxy, s3_server, web_server

KINDS = ("reset", "cut", "stall", "lie", "short", "429", "503", "500", "408")
EPOCHS, WINDOW = 2, 3
LONGEST = 120.0
"""Seconds after which a reader hangs."""

STALLS = (0.3, 35.0)
"""Seconds of a stall; the second, of one in 100 faults, is longer than a read may take."""


@dataclass
class Tally:
    """What was done, and what went wrong."""

    kills: int = 0
    finished: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"kills": self.kills, "finished": self.finished, "injected": self.injected, "faults": self.faults}


def torture_stores(folder: Path, rng: random.Random, enough: Callable[[Tally], bool]) -> Tally:
    """Read from a failing store until `enough`, killed at random; with a cache for all and one for two windows.

    Args:
        folder: where everything is made.
        rng: decides about faults and moments.
        enough: asked before each cache is begun anew.
    """
    tally = Tally()
    shards = folder / "shards"
    pack(
        SyntheticSource(120, min_side=60, max_side=80),
        shards,
        PackOptions(split="random", short_side=48, samples_per_shard=6),
        workers=1,
    )
    split = Manifest.load(shards).split("train")
    hashes = {shard.name: shard.sha256 for shard in split.shards}
    expected = folder / "expected.json"
    expected.write_text(json.dumps(_digests(shards)))
    lied: set[str] = set()
    cache = ShardCache(folder / "cache")
    faults = Faults(stalls=STALLS[0])

    def plan(request: Request) -> str:
        name = request.path.rpartition("/")[2]
        if name in hashes and cache.holds(hashes[name]):
            tally.faults.append(f"{request.path} was fetched although it was there")
        kind = rng.choice(KINDS) if rng.random() < 0.3 else ""
        if kind in {"lie", "short"}:
            # Wrong bytes that come twice are rightly refused, so that after a lie the whole is told truly once.
            kind = "" if request.path in lied or not request.path.endswith(".tar") else kind
            lied.add(request.path)
        if not kind and request.start == 0:
            lied.discard(request.path)
        if kind:
            tally.injected[kind] += 1
            faults.stalls = STALLS[sum(tally.injected.values()) % 100 == 0]
            kind = "stall" if faults.stalls == STALLS[1] else kind
        return kind

    faults.plan = plan
    with web_server(shards) as web, s3_server() as s3:
        store = Objects("s3://bucket/shards")
        for path in shards.iterdir():
            store.put(path.name, path)
        while not enough(tally):
            inner = rng.choice((web, s3))
            with proxy(inner, faults) as between:
                address = "s3://bucket/shards" if inner == s3 else between
                limit = rng.choice((0, window_bytes(split, WINDOW)))
                command = [sys.executable, "-m", __name__, address, str(cache.folder), str(limit), str(expected)]
                os.environ["AWS_ENDPOINT_URL"] = between
                for _ in range(rng.randint(1, 6)):
                    _killed(command, rng.uniform(1.5, 4.0), tally)
                    tally.faults += [f"after a kill: {fault}" for fault in _wrong(cache)]
                _read_to_the_end(command, tally)
            tally.faults += [f"at the end: {fault}" for fault in _wrong(cache)]
            if limit and sum(each.bytes for each in cache.stored()) > limit:
                tally.faults.append("the cache is larger than its limit")
            shutil.rmtree(cache.folder, ignore_errors=True)
    return tally


def _killed(command: list[str], seconds: float, tally: Tally) -> None:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        tally.kills += 1
        time.sleep(0.1)  # its helper ends with it
    else:
        if process.returncode:
            tally.faults.append(err.strip()[-300:])


def _read_to_the_end(command: list[str], tally: Tally) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        tally.faults.append("it hung")
        return
    if done.returncode:
        tally.faults.append(done.stderr.strip()[-300:])
    tally.finished += 1


def _wrong(cache: ShardCache) -> list[str]:
    found = [f"{each.path.name} holds other bytes" for each, sound in verify(cache) if not sound]
    files = [path for path in cache.folder.rglob("*") if path.is_file() and ".partial" not in path.name]
    return found + [f"{path.name} was left behind" for path in files if path.suffix not in {".tar", ".idx", ".json"}]


def _digests(shards: Path | RemoteShards) -> list[str]:
    loader = build_loader(
        "webdataset",
        shards=shards,
        split="train",
        batch_size=4,
        size=(32, 32),
        training=True,
        window=WINDOW,
        num_threads=1,
    )
    try:
        return [_digest(batch) for _ in range(EPOCHS) for batch in loader]
    finally:
        loader.close()


def _digest(batch: Batch) -> str:
    parts = (batch.indices, batch.images, batch.codes)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def main(address: str, cache: str, limit: str, expected: str) -> int:
    """Read, and compare."""
    remote = RemoteShards(address, Path(cache), int(limit) or None, patience=60)
    found, wanted = _digests(remote), json.loads(Path(expected).read_text())
    if found != wanted:
        print("a batch holds other bytes than the local one", file=sys.stderr)
    return int(found != wanted)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
