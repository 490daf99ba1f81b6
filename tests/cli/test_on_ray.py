"""Packing as tasks of a Ray cluster: the bytes, the rejects and the sentences of one machine."""

import sys
from pathlib import Path

import pytest

from petseg.data.shards.on_ray import RayCluster
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
    with ray_cluster(1) as made:
        yield made


class Odd(OxfordSource):
    """Cannot be read for a reason that nobody thought of."""

    def read(self, pair):
        raise ZeroDivisionError("nobody thought of it")


def test_the_bytes_are_those_of_one_machine(cluster, oxford_copy, tmp_path, petseg, monkeypatch):
    (oxford_copy / "images" / "Drawn_7.jpg").write_bytes(b"no picture")
    local = pack(OxfordSource(oxford_copy), tmp_path / "local", OFFICIAL, workers=1)
    ticks = []
    monkeypatch.chdir(tmp_path)
    away = pack(
        OxfordSource(Path("oxford")), Path("away"), OFFICIAL, workers=1, run=RayCluster("ray"), progress=ticks.append
    )
    assert content(tmp_path / "away") == content(tmp_path / "local") and sum(ticks) == 24
    assert away.manifest == local.manifest and [each.key for each in away.rejected] == ["Drawn_7"]
    args = ["--split", "official", "--short-side", 64, "--samples-per-shard", 4]
    code, out, err = petseg("shard", oxford_copy, "again", *args, "--on", "ray", "--workers", 2)
    assert (code, err) == (0, "") and "rejected Drawn_7" in out
    assert content(Path("again")) == content(tmp_path / "local")


def test_errors_are_one_sentence_or_the_workers_traceback(cluster, oxford, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: nobody thought of it"):
        pack(Odd(oxford), tmp_path / "odd", OFFICIAL, workers=1, run=RayCluster("ray"))
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(PetsegError, match="is a file: give a folder"):
        pack(OxfordSource(oxford), blocked, OFFICIAL, workers=1, run=RayCluster("ray"))

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
