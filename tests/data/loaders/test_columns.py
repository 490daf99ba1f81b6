"""Manifests whose shards are columns in a file of their own, and shards that are opened when they are first used."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg import Manifest, RemoteShards
from petseg.data.shards import manifest as module
from petseg.data.shards.columns import ShardColumns, ShardInfo, from_bytes, to_bytes
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.reader import ShardReader
from petseg.data.shards.verify import verify
from petseg.data.sources.synthetic import SyntheticSource
from petseg.errors import PetsegError
from tests.data.loaders.ways import WAYS
from tests.data.shards.test_pack import content
from tests.servers import web_server

OPTIONS = PackOptions(split="random", short_side=48, samples_per_shard=5)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One pack with a manifest of objects, and with one of columns."""
    folder = tmp_path_factory.mktemp("both")
    source = SyntheticSource(60, min_side=60, max_side=80)
    pack(source, folder / "objects", OPTIONS, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COLUMNS_FROM", 3)
        pack(source, folder / "columns", OPTIONS, workers=1)
    return folder / "objects", folder / "columns"


@pytest.fixture
def columns(both, tmp_path):
    return shutil.copytree(both[1], tmp_path / "columns")


SHARDS = st.lists(
    st.builds(
        ShardInfo,
        name=st.text("abzé-0.", min_size=1, max_size=9),
        samples=st.integers(0, 2**40),
        bytes=st.integers(0, 2**50),
        sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
    ),
    max_size=6,
)


@given(SHARDS, st.data())
def test_columns_are_a_sequence_and_come_back_from_bytes(shards, data):
    made = ShardColumns.of(shards)
    back = from_bytes(to_bytes({"train": made, "val": made}), "val")
    for each in (made, back):
        assert list(each) == shards == each and len(each) == len(shards) and each != [*shards, None]
        at = data.draw(st.slices(len(shards)))
        assert list(each[at]) == shards[at]
    assert to_bytes({"train": made}) == to_bytes({"train": ShardColumns.of(shards)})
    assert shards == [] or made[-1] == shards[-1]


def test_the_manifest_says_the_same_in_fewer_words(both):
    objects, columns = map(Manifest.load, both)
    assert (objects.format, columns.format) == (1, 2)
    assert objects.splits == columns.splits and isinstance(columns.split("train").shards, ShardColumns)
    assert [split.sizes for split in objects.splits.values()] == [split.sizes for split in columns.splits.values()]
    one, other = map(content, both)
    (beside,) = (name for name in other if name.endswith(".npz"))
    other.pop(beside)
    assert one.pop("manifest.json") != other.pop("manifest.json") and one == other
    assert columns.digest == Manifest.load(both[1]).digest != objects.digest
    assert "sha256" not in (both[1] / "manifest.json").read_text()


@pytest.mark.parametrize("name", WAYS)
def test_batches_are_the_same(load, both, same, name):
    for training in (True, False):
        one, other = (load(name, folder, training=training, window=3 if training else None) for folder in both)
        for _ in range(2):
            for first, second in zip(one, other, strict=True):
                assert same(first, second)


def test_shards_are_opened_when_they_are_first_used(both):
    with_columns = ShardReader(both[1], Manifest.load(both[1]), "train")
    plain = ShardReader(both[0], Manifest.load(both[0]), "train")
    opened = [tar is not None for tar in with_columns._tars]
    assert len(opened) > 5 and not any(opened) and len(with_columns) == len(plain)
    for index in (len(plain) - 1, 0, 7):
        assert with_columns.read(index)[0] == plain.read(index)[0] and with_columns.key(index) == plain.key(index)
    assert sum(tar is not None for tar in with_columns._tars) == 3


def test_what_one_reader_found_the_next_one_knows(columns):
    one = ShardReader(columns, Manifest.load(columns), "train")
    found = [bytes(one.read(index)[0]) for index in range(len(one))]
    for index in columns.glob("*.idx"):  # which are not read a second time
        index.write_text("nothing")
    other = ShardReader(columns, Manifest.load(columns), "train", verify=False)
    assert [bytes(other.read(index)[0]) for index in range(len(other))] == found


def test_a_store_with_columns_is_read_also_offline(load, both, same, tmp_path):
    with web_server(both[1]) as address:
        away = load("webdataset", RemoteShards(address, tmp_path / "cache"))
        for one, other in zip(load("webdataset", both[0]), away, strict=True):
            assert same(one, other)
        assert verify(RemoteShards(address, tmp_path / "cache"), Manifest.load(both[1])) == []
    away.close()
    offline = RemoteShards(address, tmp_path / "cache", offline=True)
    assert Manifest.load(offline) == Manifest.load(both[1])


def test_what_is_damaged_is_said(columns, load):
    tar = sorted(columns.glob("train-*.tar"))[2]
    data = bytearray(tar.read_bytes())
    data[3000] ^= 1
    tar.write_bytes(data)
    loader = load("webdataset", columns)
    with pytest.raises(PetsegError, match=f"{tar.name} has another SHA-256"):
        list(loader)
    tar.write_bytes(data[:-1])
    with pytest.raises(PetsegError, match=f"{tar.name} is shorter than the manifest says"):
        load("webdataset", columns)
    tar.unlink()
    with pytest.raises(PetsegError, match=f"{tar.name} cannot be read"):
        load("webdataset", columns)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "has no shards-"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "npz is not the one that belongs to it"),
    ],
)
def test_columns_that_do_not_belong_are_refused(columns, change, words):
    change(next(columns.glob("shards-*.npz")))
    with pytest.raises(PetsegError, match=words):
        Manifest.load(columns)


@pytest.mark.parametrize(
    "made",
    [
        b"nothing",
        to_bytes({"val": ShardColumns.of([])}),
        to_bytes({"train": ShardColumns(np.zeros(2, "S3"), np.zeros(1, np.int64), np.zeros(2, np.int64),
                                        np.zeros((2, 32), np.uint8))}),
        to_bytes({"train": ShardColumns(np.zeros(2, "S3"), np.zeros(2, np.int32), np.zeros(2, np.int64),
                                        np.zeros((2, 32), np.uint8))}),
    ],
)  # fmt: skip
def test_damaged_columns_are_one_sentence(made):
    with pytest.raises(PetsegError, match="columns are"):
        from_bytes(made, "train")


def test_names_with_paths_are_refused(both):
    manifest = Manifest.load(both[1])
    plain = json.loads(manifest.to_bytes())
    shards = {name: ShardColumns.of(split.shards) for name, split in manifest.splits.items()}
    shards["val"].names[:] = b"../x.tar"
    data = to_bytes(shards)
    import hashlib

    for split in plain["splits"].values():
        split["shards"]["columns"] = hashlib.sha256(data).hexdigest()
    with pytest.raises(PetsegError, match="not a plain file name"):
        Manifest.from_dict(plain, data)
