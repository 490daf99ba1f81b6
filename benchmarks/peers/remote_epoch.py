"""One epoch over shards, local or of a store, loaded alone or trained on: its rate and its cost as one JSON line."""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch  # noqa: F401 - what a user has imported; so have the peers
from _serve import _ANSWERS

import petseg
from petseg.data.shards.place import RemoteShards

parser = argparse.ArgumentParser()
parser.add_argument("--shards", required=True)
parser.add_argument("--cache", default="")
parser.add_argument("--mode", choices=("load", "whole", "train"), default="load")
args = parser.parse_args()


def cpu_seconds():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if args.mode != "train":
    made = time.perf_counter()
    shards = RemoteShards(args.shards, Path(args.cache)) if args.cache else args.shards
    loader = petseg.build_loader(
        "webdataset", shards=shards, split="train", batch_size=32, size=(128, 128), training=True, num_threads=2
    )
    began, samples = (made if args.mode == "whole" else time.perf_counter()), 0
    for batch in loader:
        samples += len(batch.indices)
    seconds = time.perf_counter() - began
    loader.close()
else:
    with tempfile.TemporaryDirectory() as folder:
        options = {"shards": args.shards, "shard_cache": args.cache, "run_dir": f"{folder}/run", "epochs": 1}
        options |= {"gallery": 0, "cache": "none", "verify": False, "loader": "webdataset"}
        result = petseg.train(options)
        record = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[0])
    seconds, samples = record["samples"] / record["images_per_s"], record["samples"]
_ANSWERS.write(json.dumps({"rate": samples / seconds, "seconds": seconds, "cpu": cpu_seconds()}) + "\n")
_ANSWERS.flush()
