import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petseg.classes import OXFORD
from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.manifest import FORMAT, Encoding, Manifest, Split
from petseg.data.sources import Rejected
from petseg.data.sources.files import MANIFEST_NAME
from petseg.errors import PetsegError


def made(name="train-000000.tar"):
    return Manifest(
        splits={"train": Split(samples=3, shards=(ShardInfo(name=name, samples=3, bytes=10240, sha256="ab" * 32),))},
        classes=OXFORD,
        encoding=Encoding(short_side=128, quality=90),
        max_height=200,
        max_width=300,
        pixel_counts={3: 5, 1: 7, 2: 9},
        mean=(0.1, 0.2, 0.3),
        std=(0.3, 0.2, 0.1),
        source_digest="cd" * 32,
        rejected=(Rejected(key="x", reason="image is truncated"),),
    )


def paths(node, at=()):
    yield at
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from paths(child, (*at, key))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300)
@given(st.data())
def test_damaged_fields_raise_petsegs_error_only(data):
    plain = json.loads(json.dumps(made().to_dict()))
    *parents, last = data.draw(st.sampled_from([p for p in paths(plain) if p]))
    node = plain
    for key in parents:
        node = node[key]
    if isinstance(node, dict) and data.draw(st.booleans()):
        del node[last]
    else:
        node[last] = json.loads(json.dumps(data.draw(ANY)))
    try:
        assert isinstance(Manifest.from_dict(plain), Manifest)
    except PetsegError as error:
        assert str(error)


def test_round_trip_equal_data_and_bytes(tmp_path):
    manifest = made()
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest.to_dict()))
    assert Manifest.load(str(tmp_path)) == Manifest.load(tmp_path)
    again = Manifest.load(tmp_path)
    assert again == manifest
    assert again.digest == manifest.digest
    assert made("other.tar").digest != manifest.digest


@pytest.mark.parametrize("name", ["../x.tar", "/x.tar", "a/b.tar", "", ".", "..", "a\0b"])
def test_path_like_shard_names_are_refused(name):
    with pytest.raises(PetsegError, match="plain file name"):
        Manifest.from_dict(made(name).to_dict())


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(PetsegError, match="no such folder"):
        Manifest.load(tmp_path / "none")
    with pytest.raises(PetsegError, match="petseg index"):
        Manifest.load(tmp_path)
    for text, says in (
        ("{", "not JSON"),
        ("[]", "not a petseg manifest"),
        ("{}", "format"),
        (json.dumps({"format": FORMAT + 1}), "newer"),
        (json.dumps({"format": 1}), "damaged"),
    ):
        (tmp_path / MANIFEST_NAME).write_text(text)
        with pytest.raises(PetsegError, match=says):
            Manifest.load(tmp_path)


def test_counts_must_add_up():
    plain = made().to_dict()
    plain["splits"]["train"]["samples"] = 4
    with pytest.raises(PetsegError, match="add up"):
        Manifest.from_dict(plain)
