"""Two nodes: network namespaces with a cable between them, and torchrun in each. Run as root with iproute2.

`python -m tests.torture.nodes FOLDER` trains on both and prints the summary that rank 0 wrote.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

from tests.torture.kill import TRAIN, run_petseg

ADDRESSES = ("10.203.17.1", "10.203.17.2")


def train_on_two_nodes(folder: Path, *options: str) -> Path:
    """Train with one rank on each of two nodes; the run's folder.

    Args:
        folder: where shards and run are made.
        options: more of them.

    Raises:
        RuntimeError: it failed.
        subprocess.CalledProcessError: no namespaces can be made here.
    """
    shards, run, mark = folder / "shards", folder / "run", uuid.uuid4().hex[:6]
    if not shards.exists():
        run_petseg(["shard", "synthetic:12", str(shards), "--short-side", "48", "--split", "random"])
    names, cables = [f"petseg-{mark}-{n}" for n in range(2)], [f"ps{mark}{n}" for n in range(2)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            _ip("link", "set", cable, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        nodes = []
        for node, (name, cable) in enumerate(zip(names, cables, strict=True)):
            launcher = [
                "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node),
                "--master-addr", ADDRESSES[0], "--master-port", "29411", "-m", "petseg", "train",
            ]  # fmt: skip
            words = ["--shards", str(shards), "--run-dir", str(run), *TRAIN, *options]
            nodes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, sys.executable, "-m", *launcher, *words],
                    env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": cable},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in nodes:
            _, err = process.communicate(timeout=200)
            if process.returncode:
                raise RuntimeError(f"a node exited with {process.returncode}: {err[-3000:]}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return run


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


if __name__ == "__main__":
    print((train_on_two_nodes(Path(sys.argv[1])) / "summary.json").read_text())
