"""A Ray cluster on this machine that a test starts: a head, more nodes, and their worker processes to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

RAY = Path(sys.executable).with_name("ray")
AGENTS = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
"""Where agents have ports of their own choice, the node may give up before it has found them."""


class Node:
    """One of the cluster's, a session of its own."""

    def __init__(self, *options: str, cores: int, folder: str) -> None:
        self.log = Path(folder, f"{options[0].strip('-')}-{time.monotonic_ns()}.log")
        command = [str(RAY), "start", *options, "--block", f"--num-cpus={cores}", "--disable-usage-stats"]
        command += [f"--{name}={free_port()}" for name in AGENTS]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def workers(self) -> list[int]:
        """Process numbers of the tasks that run on it."""
        return [number for number, title in self._processes() if title.startswith(b"ray::_do")]

    def kill(self) -> None:
        """End all of its processes at once."""
        for number, _ in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._process.wait()

    def _processes(self) -> Iterator[tuple[int, bytes]]:
        """Those of its session, and their titles: workers have process groups of their own."""
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError, IndexError):
                    session = (folder / "stat").read_text().rpartition(")")[2].split()[3]
                    if int(session) == self._process.pid:
                        yield int(folder.name), (folder / "cmdline").read_bytes()


class RayNodes:
    """The cluster; its address is RAY_ADDRESS meanwhile."""

    def __init__(self, folder: str) -> None:
        self._folder, self._port = folder, free_port()
        self.nodes: list[Node] = []

    @property
    def address(self) -> str:
        """Of its head."""
        return f"127.0.0.1:{self._port}"

    def add(self, cores: int) -> Node:
        """Start one more node, the first as the head, and wait until it is there."""
        ip = f"127.0.0.{len(self.nodes) + 1}"
        if self.nodes:
            options = [f"--address={self.address}", f"--node-ip-address={ip}"]
        else:
            options = ["--head", f"--port={self._port}", f"--node-ip-address={ip}", "--include-dashboard=false"]
            options += [f"--temp-dir={self._folder}/ray", f"--ray-client-server-port={free_port()}"]
        node = Node(*options, cores=cores, folder=self._folder)
        self.nodes.append(node)
        deadline = time.monotonic() + 60
        while len(self.alive()) < len(self.nodes):
            if time.monotonic() > deadline:
                raise TimeoutError(node.log.read_text()[-2000:])
            time.sleep(0.3)
        return node

    def alive(self) -> list[str]:
        """The nodes that the head knows to live."""
        code = (
            "from ray._raylet import GcsClient; import sys\n"
            "nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)\n"
            "print(*[key.hex() for key, each in nodes.items() if each.state == 0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.address], capture_output=True, text=True, check=False, timeout=30
        )
        return done.stdout.split()


@contextlib.contextmanager
def ray_cluster(*cores: int) -> Iterator[RayNodes]:
    """Nodes with so many cores each."""
    with tempfile.TemporaryDirectory(prefix="petseg-ray-", ignore_cleanup_errors=True) as folder:
        cluster = RayNodes(folder)
        try:
            for each in cores:
                cluster.add(each)
            with mock.patch.dict(os.environ, RAY_ADDRESS=cluster.address):
                yield cluster
        finally:
            for node in cluster.nodes:
                node.kill()


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
