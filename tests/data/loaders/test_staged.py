"""Loaders over shards of a store: the batches of the local folder, fetched once, and nothing beyond the limit."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from petseg import Manifest, OrderedSamples
from petseg.data.objects import Objects
from petseg.data.shards.files import TarFiles
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.place import RemoteShards
from petseg.data.shards.reader import ShardReader
from petseg.data.shards.stage import largest_window, window_bytes
from petseg.data.sources.synthetic import SyntheticSource
from petseg.errors import PetsegError
from tests.data.loaders.ways import WAYS
from tests.servers import Faults, proxy, s3_server, web_server


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Pets in a dozen shards of train."""
    folder = tmp_path_factory.mktemp("many") / "shards"
    options = PackOptions(split="random", short_side=48, samples_per_shard=5)
    pack(SyntheticSource(90, min_side=60, max_side=80), folder, options, workers=1)
    assert len(Manifest.load(folder).split("train").shards) > 10
    return folder


@pytest.fixture
def remote(many, tmp_path):
    """Makes `RemoteShards` of them; (make, faults)."""
    faults = Faults()
    with web_server(many) as inner, proxy(inner, faults) as address:
        yield lambda name="cache", **options: RemoteShards(address, tmp_path / name, **options), faults


def all_equal(same, local, remote, epochs=2):
    for _ in range(epochs):
        for one, other in zip(local, remote, strict=True):
            assert same(one, other)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("training", [True, False])
def test_batches_are_those_of_the_local_folder(load, many, remote, same, name, training):
    make, faults = remote
    local, away = (load(name, shards, training=training) for shards in (many, make()))
    assert local.state_dict() == away.state_dict()
    all_equal(same, local, away)
    tars = [request.path for request in faults.requests if request.path.endswith(".tar")]
    assert len(tars) == len(set(tars)) == len(Manifest.load(many).split("train").shards)


@pytest.mark.parametrize("name", ["webdataset", "dali"])
def test_under_a_limit_two_windows_are_enough(load, many, remote, same, name):
    make, _ = remote
    split = Manifest.load(many).split("train")
    limit = window_bytes(split, 2)
    away = load(name, make(limit=limit), window=2, batch_size=3)
    cache = away._engine._stage.cache
    for one, other in zip(load(name, many, window=2, batch_size=3), away, strict=True):
        assert same(one, other)
        assert sum(each.bytes for each in cache.stored()) <= limit
    all_equal(
        same, load(name, many, window=2, batch_size=3), load(name, make("b", limit=limit), window=2, batch_size=3)
    )
    with pytest.raises(PetsegError, match=rf"--shard-cache-limit .* too small: two windows .*\({limit} bytes\)"):
        load(name, make(limit=limit - 1), window=2)
    assert largest_window(split, limit) == 2 and largest_window(split, 10**9) == 0


def test_a_loader_that_moves_on_lets_shards_go(load, many, remote):
    make, _ = remote
    limit = window_bytes(Manifest.load(many).split("train"), 2)
    away = load("webdataset", make(limit=limit), window=2, batch_size=3)
    for epoch in (0, 5, 2, 9):
        away.set_epoch(epoch)
        for _, batch in zip(range(3), away, strict=False):
            assert len(batch.images) == 3
    assert list(away) and away._engine._stage.cache.limit == limit


def test_a_state_goes_from_a_local_folder_to_a_store_and_back(load, many, remote, same):
    make, _ = remote
    first = load("webdataset", many, seed=3)
    for _, _ in zip(range(4), first, strict=False):
        pass
    second = load("webdataset", make(), seed=3, batch_size=4)
    second.load_state_dict(first.state_dict())
    all_equal(same, first, second, epochs=1)
    third = load("webdataset", many, seed=3)
    third.load_state_dict(second.state_dict())
    assert third.state_dict() == first.state_dict()


def test_offline_after_it_was_read_once(load, many, remote, same):
    make, faults = remote
    with pytest.raises(
        PetsegError,
        match=r"--offline: .*manifest.json is not cached on this machine: run "
        r"petseg fetch",
    ):
        load("webdataset", make(offline=True))
    list(load("webdataset", make(), training=False))
    faults.requests.clear()
    faults.plan = lambda request: "503"
    all_equal(same, load("webdataset", many), load("webdataset", make(offline=True)))
    assert not faults.requests


def test_samples_and_images_come_from_a_store_too(many, remote):
    make, _ = remote
    for one, other in zip(OrderedSamples(many, "train"), OrderedSamples(make(), "train"), strict=True):
        assert one["__key__"] == other["__key__"] and one["jpg"] == other["jpg"] and one["png"] == other["png"]
        assert other["__url__"].startswith("http://127.0.0.1")
    manifest = Manifest.load(many)
    limit = window_bytes(manifest.split("train"), 1)
    reader = ShardReader(make("small", limit=limit), manifest, "train")
    local = ShardReader(many, manifest, "train")
    for index in np.random.default_rng(0).permutation(len(reader)).tolist():
        assert bytes(reader.read(index)[0]) == bytes(local.read(index)[0])
    reader.close()
    local.close()


def test_a_bucket_is_a_folder(load, many, same, tmp_path):
    with s3_server():
        store = Objects("s3://bucket/pets")
        for path in many.iterdir():
            store.put(path.name, path)
        away = load("webdataset", RemoteShards("s3://bucket/pets", tmp_path / "cache"))
        all_equal(same, load("webdataset", many), away)
        away.close()


def test_ranks_of_a_machine_fetch_each_byte_once_together(load, many, remote, monkeypatch):
    make, faults = remote
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    split = Manifest.load(many).split("train")

    def rank(number):
        loader = load("webdataset", make(), rank=number, world=2, seed=1)
        found = {index for batch in loader for index in batch.indices.tolist()}
        loader.close()
        return found

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(rank, range(2))
    assert one and other and not one & other
    fetched = faults.sent - sum(
        len((many / name).read_bytes()) for name in [request.path[1:] for request in faults.requests]
        if not name.endswith(".tar")
    )  # fmt: skip
    assert fetched == window_bytes(split, None), "1.00 of the set"


def test_each_node_fetches_its_lanes_alone(load, many, remote, monkeypatch):
    make, faults = remote
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    options = {"batch_size": 3, "window": 2, "seed": 1, "fit": "squash"}
    count = len(Manifest.load(many).split("train").shards)
    alone = load("webdataset", many, batch_size=6, rank=0, world=1, lanes=2, window=2, seed=1)
    fetched, nodes = [], []
    for rank in range(2):
        faults.requests.clear()
        node = load("webdataset", make(f"node{rank}"), rank=rank, world=2, lanes=2, **options)
        nodes.append([sorted(batch.indices.tolist()) for batch in node])
        node.close()
        fetched.append(len({request.path for request in faults.requests if request.path.endswith(".tar")}))
    assert max(fetched) <= count // 2 + 3 and sum(fetched) < 1.4 * count, (fetched, count)
    together = [sorted(one + other) for one, other in zip(*nodes, strict=True)]
    assert together == [sorted(batch.indices.tolist()) for batch in alone]
    state = alone.state_dict()
    assert state["lanes"] == 2
    with pytest.raises(PetsegError, match="of lanes 2"):
        load("webdataset", many, batch_size=6, window=2, seed=1).load_state_dict(state)


def test_a_second_reader_leaves_the_files_of_the_first_what_they_were(many, remote):
    make, _ = remote
    manifest = Manifest.load(many)
    first, second = (ShardReader(make(), manifest, "train") for _ in range(2))
    spans = first.spans(np.arange(len(first)))
    second.spans(np.arange(len(second)))
    files = TarFiles()
    assert all(len(files.read(span)[0]) for span in spans)
    for each in (files, first, second):
        each.close()


def test_what_is_not_there_is_said(load, remote):
    make, faults = remote
    faults.plan = lambda request: "404" if request.path.endswith("train-000003.tar") else ""
    away = load("webdataset", make())
    with pytest.raises(PetsegError, match=r"http://.*/train-000003.tar: there is no such object"):
        list(away)
    faults.plan = lambda request: "404"
    with pytest.raises(PetsegError, match=r"http://\S+ has no manifest.json: give the folder that petseg-shard wrote"):
        load("webdataset", make())
