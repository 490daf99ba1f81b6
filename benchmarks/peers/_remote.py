"""What peers that read from a store share: their command line, and one epoch from the loader's making to its end."""

import argparse
import json
import os
import time
from pathlib import Path

from _serve import _ANSWERS


def arguments():
    """The command line of every peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="cell: files/images, files/masks")
    parser.add_argument("--write", type=Path, help="folder for its own shards, which are made and no more")
    parser.add_argument("--remote", default="", help="where these are now")
    parser.add_argument("--cache", type=Path, help="an empty folder")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def measure(make):
    """Go through the loader that `make()` makes once; writes the rate and the CPU seconds."""
    began, samples = time.perf_counter(), 0
    for batch in make():
        samples += len(batch[0])
    seconds, times = time.perf_counter() - began, os.times()
    cpu = times.user + times.system + times.children_user + times.children_system
    _ANSWERS.write(json.dumps({"rate": samples / seconds, "seconds": seconds, "cpu": cpu, "samples": samples}) + "\n")
    _ANSWERS.flush()
