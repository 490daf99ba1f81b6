"""The pack and scale benchmarks: what is written is counted, and made-up shards open like real ones."""

import pytest

from benchmarks import pack, scale
from benchmarks.data import prepare, source_of
from benchmarks.harness import Row
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return prepare(source_of("synthetic", 6), 0, tmp_path_factory.mktemp("work"))


@pytest.mark.slow
def test_whole_commands_are_timed_and_who_loses_a_sample_or_fails_is_labelled(originals, tmp_path):
    first, *_ = sorted((originals.folder / "files" / "images").iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    entries = {entry.name: entry for entry in reversed(pack.ENTRIES)}
    chosen = [
        entries[name]
        for name in ("ShardWriter, copies", "petseg-shard, 1 worker", "ShardWriter, decodes, checks and resizes")
    ]
    ticks = []
    try:
        copies, ours, resizes = pack.run_size(originals, chosen, repeats=1, scratch=tmp_path, progress=ticks.append)
    finally:
        first.write_bytes(whole)
    assert copies.note == "" and copies.samples[0] > 0 and copies.facts["bytes"] > 1000
    assert ours.note == "it wrote 5 of 6 samples" and ours.facts["detail"].endswith(" s")
    assert resizes.note.startswith("failed: ") and not resizes.samples
    assert len(ticks) == 3 and not list(tmp_path.iterdir())


def test_ratios_are_of_the_largest_number_of_images():
    def row(name, speed, size, cell="original bytes"):
        return Row(name=name, unit="images/s", samples=[speed], facts={"cell": cell, "size": size})

    rows = [
        row("petseg-shard, 1 worker", 1.0, 500), row("ShardWriter, copies", 50.0, 500),
        row("petseg-shard, 1 worker", 100.0, 3000), row("petseg-shard, 2 workers", 180.0, 3000),
        row("ShardWriter, copies", 360.0, 3000), row("ShardWriter, decodes and checks", 90.0, 3000),
    ]  # fmt: skip
    assert pack.ratios(rows) == {
        "copies": 0.5, "checks": 2.0, "checks_one_worker": pytest.approx(100 / 90), "resizes": None,
        "resizes_one_worker": None,
    }  # fmt: skip


def test_made_up_shards_open_and_are_measured_step_by_step(tmp_path):
    shards = scale.make_shards(tmp_path / "made-up-3000", 3000)
    manifest = Manifest.load(shards)
    reader = ShardReader(shards, manifest, "train", verify=False)
    assert len(reader) == manifest.split("train").samples == 3000
    assert reader.key(2999) == "Sample_000999"
    image, mask = reader.read(2999)
    assert (len(image), len(mask)) == (7000, 1100)
    reader.close()
    rows = scale.run_all(tmp_path, [3000], peers=True, repeats=1, progress=lambda _: None)
    assert all(len(row.samples) == 1 and min(row.samples) >= 0 and not row.note for row in rows)
    seconds = {row.name for row in rows if row.unit == "s"}
    assert {"petseg", "petseg, rank 1023 of 1024", "torch's DistributedSampler"} < seconds
    assert all(value > 0 for value in scale.ratios(rows).values())
