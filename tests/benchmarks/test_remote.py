"""The benchmark of remote shards: its ratios, its servers, and every way once."""

import urllib.request

import pytest

from benchmarks import remote
from benchmarks.data import prepare, source_of
from benchmarks.harness import Row
from petseg.data.objects import Objects


def row(mode, way, *rates):
    return Row(name=way, unit="images/s", samples=list(rates), facts={"mode": mode, "way": way})


def test_ratios_are_of_medians():
    rows = [
        row("load", "local", 90.0, 100.0, 200.0), row("load", "warm", 99.0), row("load", "cold", 50.0),
        row("train", "local", 20.0), row("train", "cold", 18.0), row("whole", "petseg", 60.0),
        row("whole", "LitData", 30.0), row("whole", "MosaicML Streaming"), row("fetched", "fetched_by_two_ranks", 1.0),
    ]  # fmt: skip
    assert remote.ratios(rows) == {
        "cold_over_peers": 2.0, "warm": 0.99, "cold_training": 0.9, "cold_loading": 0.5,
        "fetched_by_one_rank": None, "fetched_by_two_ranks": 1.0,
    }  # fmt: skip
    assert remote.ratios(rows[:6])["cold_over_peers"] is None


def test_its_servers_serve(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "manifest.json").write_text("{}")
    with remote.server(tmp_path / "served", tmp_path) as (address, name):
        assert urllib.request.urlopen(f"{address}/manifest.json").read() == b"{}" and name
    with remote.bucket(tmp_path) as address:
        remote._upload(tmp_path / "served", f"{address}/x")
        assert Objects(f"{address}/x").get("manifest.json") == b"{}"


@pytest.mark.slow
def test_every_way_is_measured_once(tmp_path):
    cell = prepare(source_of("synthetic", 80), 0, tmp_path / "work")
    rows = remote.run_all(cell.shards, repeats=1, progress=lambda name: None)
    rows += remote.run_peers(cell, repeats=1, progress=lambda name: None)
    assert all(row.samples[0] > 0 for row in rows if not row.note)
    assert not [row.note for row in rows if row.facts["kind"] == "petseg" and row.note]
