"""Shards of a store on loopback beside the same shards on the disk: loaded alone, and trained on."""

from __future__ import annotations

import contextlib
import json
import os
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

from benchmarks.data import Cell
from benchmarks.harness import ROOT, ContenderError, Row, peer
from petseg.data.objects import Objects

LIMIT_SECONDS = 600
_NGINX = """
{user}daemon off; error_log stderr; pid {work}/nginx.pid; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  log_format bytes '$uri $body_bytes_sent'; access_log {work}/access.log bytes;
  sendfile on; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""

PEERS = {"LitData": "remote_litdata.py", "MosaicML Streaming": "remote_streaming.py"}
"""Libraries that read from stores, in environments of their own."""

WAYS = {"load": ("local", "warm", "cold"), "train": ("local", "cold")}
NAMES = {
    "local": "shards on the disk",
    "warm": "of a store, all of them kept already",
    "cold": "of a store, nothing kept yet",
}
CHARTS = {
    "load": "Loading an epoch, at 128 px",
    "whole": "A first epoch from a store that speaks S3, nothing kept yet, from the loader's making on",
    "train": "The first epoch of a training run, at 128 px",
    "fetched": "Bytes fetched by a training run of two epochs",
}
RANKS = {"fetched_by_one_rank": 1, "fetched_by_two_ranks": 2}


@contextlib.contextmanager
def server(folder: Path, work: Path) -> Iterator[tuple[str, str]]:
    """(address, name) of a web server over a folder: nginx where it is installed, else Python's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if nginx := shutil.which("nginx"):
        (work / "nginx.conf").write_text(
            _NGINX.format(
                work=work,
                port=port,
                folder=folder,
                user="user root; " if hasattr(os, "geteuid") and not os.geteuid() else "",
            )
        )
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
            fetched = _fetched(shards, address, work) if name == "nginx" else []
    return [_row(mode, way, points, name) for (mode, way), points in found.items()] + fetched


def _fetched(shards: Path, address: str, work: Path) -> list[Row]:
    """The bytes of shards that nginx sent, over those of the set, for each number of ranks."""
    log, rows = work / "access.log", []
    size = sum(path.stat().st_size for path in shards.glob("*.tar"))
    for way, ranks in RANKS.items():
        before = log.stat().st_size
        command = [sys.executable, "-m", "petseg", "train", "--shards", address, "--shard-cache", str(work / way)]
        command += ["--run-dir", str(work / f"run-{way}"), "--ranks", str(ranks), "--epochs", "2", "--size", "32"]
        command += ["--device", "cpu", "--loader", "webdataset", "--cache", "none"]
        facts = {"chart": CHARTS["fetched"], "kind": "petseg", "mode": "fetched", "way": way}
        row = Row(name=f"{ranks} rank{'s' * (ranks > 1)}", unit="of the set", facts=facts)
        rows.append(row)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            row.note = f"failed: not done after {LIMIT_SECONDS} seconds"
            continue
        if done.returncode:
            row.note = f"failed: {(done.stderr.strip().splitlines() or ['it ended without a word'])[-1][:300]}"
            continue
        lines = [line.split() for line in log.read_text()[before:].splitlines()]
        sent = sum(int(count) for name, count in lines if name.endswith(".tar"))
        row.samples.append(sent / size)
    return rows


@contextlib.contextmanager
def bucket(work: Path) -> Iterator[str]:
    """The address of a bucket in moto's server, a process of its own; its credentials are in the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    log = (work / "moto.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        stdout=log, stderr=log,
    )  # fmt: skip
    given = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
                break
            time.sleep(0.1)
        yield "s3://bucket"
    finally:
        process.terminate()
        process.wait()
        log.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_peers(cell: Cell, *, repeats: int, progress: Callable[[str], None]) -> list[Row]:
    """Petseg and the other libraries, cold, in turns, from one server; a library that cannot run says why.

    Args:
        cell: the same samples as shards and as files.
        repeats: of each.
        progress: called with a name after each measurement.
    """
    found: dict[str, list[dict[str, float]]] = {"petseg": [], **{name: [] for name in PEERS}}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch, bucket(Path(scratch)) as address:
        work = Path(scratch)
        _upload(cell.shards, f"{address}/petseg")
        for name, script in PEERS.items():
            try:
                _peer(script, cell, "--write", str(work / name))
                _upload(work / name, f"{address}/{name.replace(' ', '-')}")
            except ContenderError as error:
                failed[name] = f"failed: {error}"
        for turn in range(repeats):
            for name, points in found.items():
                cache = str(work / f"cache-{turn}-{name}")
                if name == "petseg":
                    points.append(_measured("whole", f"{address}/petseg", Path(cache), "cold"))
                elif name not in failed:
                    remote = f"{address}/{name.replace(' ', '-')}"
                    try:
                        points.append(json.loads(_peer(PEERS[name], cell, "--remote", remote, "--cache", cache)))
                    except ContenderError as error:
                        failed[name] = f"failed: {error}"
                progress(f"cold, {name}")
    return [
        Row(
            name=name, unit="images/s", samples=[point["rate"] for point in points], note=failed.get(name, ""),
            facts={
                "chart": CHARTS["whole"], "kind": "petseg" if name == "petseg" else "library", "mode": "whole",
                "way": name, "detail": f"{statistics.median(p['cpu'] for p in points):.1f} s of CPU" if points else "",
            },
        )
        for name, points in found.items()
    ]  # fmt: skip


def _upload(folder: Path, address: str) -> None:
    store = Objects(address)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path)


def _peer(script: str, cell: Cell, *options: str) -> str:
    """What a peer's script prints, run in its own environment.

    Raises:
        ContenderError: it failed.
    """
    command = ["uv", "run", "--quiet", "--script", str(ROOT / "peers" / script), "--data", str(cell.folder), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ContenderError(str(error)[:300]) from None
    if done.returncode:
        raise ContenderError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:300])
    return done.stdout


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """Warm over local, cold over local in training's first epoch and for the loader alone, cold over peers; bytes."""
    rate = {(row.facts["mode"], row.facts["way"]): statistics.median(row.samples) for row in rows if row.samples}
    others = [value for (mode, way), value in rate.items() if mode == "whole" and way != "petseg"]
    return {
        "cold_over_peers": rate["whole", "petseg"] / max(others) if others else None,
        "warm": rate["load", "warm"] / rate["load", "local"],
        "cold_training": rate["train", "cold"] / rate["train", "local"],
        "cold_loading": rate["load", "cold"] / rate["load", "local"],
        **{way: rate.get(("fetched", way)) for way in RANKS},
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
