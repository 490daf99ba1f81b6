"""Shards of a store on loopback beside the same shards on the disk: loaded alone, and trained on."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.harness import ContenderError, Row, peer

LIMIT_SECONDS = 600
_NGINX = """
daemon off; error_log stderr; pid {work}/nginx.pid; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log {work}/access.log; sendfile on; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""

WAYS = {"load": ("local", "warm", "cold"), "train": ("local", "cold")}
NAMES = {
    "local": "shards on the disk",
    "warm": "of a store, all of them kept already",
    "cold": "of a store, nothing kept yet",
}
CHARTS = {"load": "Loading an epoch, at 128 px", "train": "The first epoch of a training run, at 128 px"}


@contextlib.contextmanager
def server(folder: Path, work: Path) -> Iterator[tuple[str, str]]:
    """(address, name) of a web server over a folder: nginx where it is installed, else Python's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if nginx := shutil.which("nginx"):
        (work / "nginx.conf").write_text(_NGINX.format(work=work, port=port, folder=folder))
        command, name = [nginx, "-c", str(work / "nginx.conf"), "-p", str(work)], "nginx"
    else:
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
        name = "Python's http.server"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/manifest.json").close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", name
    finally:
        process.terminate()
        process.wait()


def run_all(shards: Path, *, repeats: int, progress: Callable[[str], None]) -> list[Row]:
    """Every way, in turns.

    Args:
        shards: folder of shards.
        repeats: of each.
        progress: called with a name after each measurement.
    """
    found: dict[tuple[str, str], list[dict[str, float]]] = {
        (mode, way): [] for mode, ways in WAYS.items() for way in ways
    }
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        with server(shards.absolute(), work) as (address, name):
            for _ in range(repeats):
                for (mode, way), points in found.items():
                    cache = work / "cache"
                    if way == "cold":
                        shutil.rmtree(cache, ignore_errors=True)
                    points.append(_measured(mode, str(shards) if way == "local" else address, cache, way))
                    progress(f"{mode}, {way}")
                    if way == "local" and mode == "load":
                        _measured(mode, address, cache, "fill")
    return [_row(mode, way, points, name) for (mode, way), points in found.items()]


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """Warm over local, and cold over local in a training run's first epoch and for the loader alone."""
    rate = {(row.facts["mode"], row.facts["way"]): statistics.median(row.samples) for row in rows}
    return {
        "warm": rate["load", "warm"] / rate["load", "local"],
        "cold_training": rate["train", "cold"] / rate["train", "local"],
        "cold_loading": rate["load", "cold"] / rate["load", "local"],
    }


def _measured(mode: str, shards: str, cache: Path, way: str) -> dict[str, float]:
    command = [*peer("remote_epoch.py"), "--shards", shards, "--mode", mode]
    command += [] if way == "local" else ["--cache", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    if done.returncode:
        raise ContenderError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:300])
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _row(mode: str, way: str, points: Sequence[dict[str, float]], server_name: str) -> Row:
    cpu = statistics.median(point["cpu"] for point in points)
    return Row(
        name=NAMES[way], unit="images/s", samples=[point["rate"] for point in points],
        facts={
            "chart": CHARTS[mode], "kind": "ceiling" if way == "local" else "petseg", "mode": mode, "way": way,
            "detail": f"{cpu:.1f} s of CPU time, start included" + ("" if way == "local" else f"; {server_name}"),
        },
    )  # fmt: skip
