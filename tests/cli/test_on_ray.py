"""Packing as tasks of a Ray cluster: the bytes, the rejects and the sentences of one machine."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from petseg.data.shards.pack import pack
from petseg.data.shards.pool import run_jobs
from petseg.data.sources.oxford import OxfordSource
from petseg.errors import PetsegError
from tests.cli.test_app import refuses
from tests.data.shards.test_pack import OFFICIAL, content
from tests.ray_cluster import ray_cluster

pytest.importorskip("ray")
if sys.platform == "win32":
    pytest.skip("Ray's nodes are process groups here", allow_module_level=True)


@pytest.fixture(scope="module")
def cluster():
    with contextlib.ExitStack() as started:
        try:
            started.enter_context(ray_cluster(1))
        except TimeoutError as error:
            pytest.skip(f"Ray does not come up here within a minute: {error}")
        yield


ODD = """
import sys
from pathlib import Path
from petseg.data.shards.on_ray import RayCluster
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.sources.oxford import OxfordSource

class Odd(OxfordSource):
    def read(self, pair):
        raise ZeroDivisionError("nobody thought of it")

pack(Odd(Path(sys.argv[1])), Path("odd"), PackOptions(), workers=1, run=RayCluster("ray"))
"""
"""A source that cannot be read for a reason that nobody thought of."""


def python(*args, cwd: Path) -> subprocess.CompletedProcess:
    """In a process of its own: Ray's clients stay in theirs until it ends."""
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.slow
def test_the_bytes_are_those_of_one_machine(cluster, oxford_copy, tmp_path):
    (oxford_copy / "images" / "Drawn_7.jpg").write_bytes(b"no image")
    local = pack(OxfordSource(oxford_copy), tmp_path / "local", OFFICIAL, workers=1)
    options = ["--split", "official", "--short-side", 64, "--samples-per-shard", 4, "--on", "ray"]
    for name, more in (("all", []), ("two", ["--workers", 2])):
        done = python("-m", "petseg", "shard", "./oxford", name, *options, *more, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "") and "rejected Drawn_7" in done.stdout
        assert content(tmp_path / name) == content(tmp_path / "local")
    assert [each.key for each in local.rejected] == ["Drawn_7"]


@pytest.mark.slow
def test_an_error_of_a_worker_comes_with_its_traceback(cluster, oxford, tmp_path):
    done = python("-c", ODD, oxford, cwd=tmp_path)
    assert done.returncode == 1 and "ZeroDivisionError: nobody thought of it" in done.stderr
    assert not list((tmp_path / "odd").glob("*.tar"))


@pytest.mark.slow
def test_a_folder_that_the_nodes_do_not_share_is_said(oxford, tmp_path):
    def elsewhere(work, jobs, *, workers, progress):
        for stats in run_jobs(work, jobs, workers=1, progress=progress):
            (tmp_path / "lost" / ".packing" / f"{stats.name}.json").unlink()
            yield stats

    with pytest.raises(PetsegError, match="and it is not here: give a folder that all nodes share"):
        pack(OxfordSource(oxford), tmp_path / "lost", OFFICIAL, workers=1, run=elsewhere)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--on", "spark"], "--on spark: give ray, or ray://HOST:PORT"),
        (["--on", "ray://"], "give ray, or ray://HOST"),
        (["--on", "ray", "--part", "1/2"], "--part and --on: give one of them"),
    ],
)
def test_bad_input(petseg, args, words):
    refuses(petseg("shard", "synthetic:4", "out", *args), words)


def test_no_cluster_is_said(petseg, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    refuses(petseg("shard", "synthetic:40", "out", "--on", "ray"), "--on ray: no such Ray cluster", "ray start --head")
    assert not list(Path("out").glob("*.tar"))
