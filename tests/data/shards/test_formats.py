"""What other tools make of the shards: webdataset, DALI's own reader, wds2idx, tar."""

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st

from petseg import Manifest
from petseg.data.decode.images import decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.shards.index import format_index, read_index, read_key
from petseg.data.shards.manifest import Encoding
from petseg.data.shards.reader import ShardReader
from petseg.data.shards.spans import read_spans
from petseg.data.tar import Component, Entry, scan_tar
from petseg.errors import PetsegError


def samples(shards: Path, split: str) -> list[tuple[str, bytes, bytes]]:
    reader = ShardReader(shards, Manifest.load(shards), split)
    try:
        return [(reader.key(i), *(bytes(part) for part in reader.read(i))) for i in range(len(reader))]
    finally:
        reader.close()


@pytest.mark.parametrize("made", ["packed", "originals", "pixels"])
def test_webdataset_reads_them(request, made):
    shards = request.getfixturevalue(made)
    tars = [str(shards / info.name) for info in Manifest.load(shards).split("train").shards]
    dataset = wds.WebDataset(tars, shardshuffle=False)
    image, mask = ("ppm", "pgm") if made == "pixels" else ("jpg", "png")
    assert [(s["__key__"], s[image], s[mask]) for s in dataset] == samples(shards, "train")
    for sample in wds.WebDataset(tars[:1], shardshuffle=False).decode("rgb8"):
        assert sample[image].shape == sample[mask].shape and sample[image].dtype == np.uint8


@pytest.mark.parametrize("made", ["packed", "originals", "pixels"])
def test_the_index_is_wds2idxs(request, made, tmp_path):
    shards = request.getfixturevalue(made)
    for number, tar in enumerate(sorted(shards.glob("*.tar"))):
        made_by_dali = tmp_path / f"{number}.idx"
        subprocess.run([Path(sys.executable).with_name("wds2idx"), tar, made_by_dali], check=True, capture_output=True)
        ours = tar.with_suffix(".idx")
        assert ours.read_bytes() == made_by_dali.read_bytes()
        assert format_index(read_index(ours)) == ours.read_bytes()
        assert scan_tar(tar) == read_index(ours)


@pytest.mark.parametrize("made", ["packed", "pixels"])
def test_dalis_own_reader_takes_tar_and_index(request, made):
    from nvidia.dali import fn, pipeline_def

    packed = request.getfixturevalue(made)
    manifest = Manifest.load(packed)
    tars = [packed / info.name for info in manifest.split("train").shards]

    @pipeline_def(batch_size=42, num_threads=1, device_id=None)
    def pipeline():
        return tuple(
            fn.readers.webdataset(
                paths=[str(tar) for tar in tars],
                index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
                ext=[manifest.encoding.image, manifest.encoding.mask],
            )
        )

    made = pipeline()
    made.build()
    jpegs, pngs = made.run()
    got = [(jpegs.at(i).tobytes(), pngs.at(i).tobytes()) for i in range(42)]
    assert got == [(image, mask) for _, image, mask in samples(packed, "train")]


def test_the_tars_are_plain(packed, tmp_path):
    for tar in packed.glob("*.tar"):
        with tarfile.open(tar, "r:") as opened:
            members = opened.getmembers()
            opened.extractall(tmp_path, filter="data")
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {
            (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
        }
        names = [m.name for m in members]
        assert [n.removesuffix(".jpg") for n in names[::2]] == [n.removesuffix(".png") for n in names[1::2]]
        assert tar.stat().st_size % 10240 == 0
    for key, image, mask in samples(packed, "train"):
        assert (tmp_path / f"{key}.jpg").read_bytes() == image and (tmp_path / f"{key}.png").read_bytes() == mask


def test_what_petseg_encoded_is_baseline_and_grey(packed):
    from petseg.data.shards.normalise import frame_marker

    for _, image, mask in samples(packed, "train"):
        assert frame_marker(image) == 0xC0
        assert min(decode_image(image).shape[:2]) == 64
        assert decode_image(image).shape[:2] == decode_mask(mask).shape


def test_pixels_are_those_that_a_jpeg_was_made_of(packed, pixels):
    """The same samples in the same shards; nothing is lost, and no image is decoded."""
    assert Manifest.load(pixels).encoding == Encoding(short_side=64, quality=0, image="ppm", mask="pgm")
    for (key, image, mask), (name, ppm, pgm) in zip(samples(packed, "train"), samples(pixels, "train"), strict=True):
        assert key == name and np.array_equal(decode_mask(mask), decode_mask(pgm))
        made = simplejpeg.encode_jpeg(decode_image(ppm), quality=90, colorspace="RGB", colorsubsampling="420")
        assert made == image


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a whole index"),
        (b"v1.1 1\njpg 512 10 a.jpg\n", "not a whole index"),
        (b"v1.2 2\njpg 512 10 a.jpg\n", "not a whole index"),
        (b"v1.2 1\njpg 512 ten a.jpg\n", "line 2 is damaged"),
        (b"v1.2 1\njpg 512 -10 a.jpg\n", "line 2 is damaged"),
        (b"v1.2 1\njpg 512 10\n", "line 2 is damaged"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_damaged_index_is_named_with_what_to_do(packed_copy, content, words):
    index = next(packed_copy.glob("val-*.idx"))
    index.write_bytes(content)
    with pytest.raises(PetsegError, match=words) as caught:
        ShardReader(packed_copy, Manifest.load(packed_copy), "val")
    assert "petseg index" in str(caught.value) and index.name in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "shorter", "longer", "other samples", "beyond the end"])
def test_a_tar_that_is_not_what_the_manifest_says(packed_copy, change):
    tar = next(packed_copy.glob("val-*.tar"))
    index = tar.with_suffix(".idx")
    if change == "missing":
        tar.unlink()
    elif change == "shorter":
        tar.write_bytes(tar.read_bytes()[:-10240])
    elif change == "longer":
        tar.write_bytes(tar.read_bytes() + bytes(512))
    elif change == "other samples":
        lines = index.read_text().splitlines()
        index.write_text("\n".join(["v1.2 11", *lines[2:]]) + "\n")
        change = "lists 11 samples, the manifest says 12"
    else:
        lines = index.read_text().splitlines()
        fields = lines[-1].split(" ")
        fields[1] = str(10**12)
        index.write_text("\n".join([*lines[:-1], " ".join(fields)]) + "\n")
    words = {"missing": "cannot be read"}.get(change, change)
    with pytest.raises(PetsegError, match=words):
        ShardReader(packed_copy, Manifest.load(packed_copy), "val")


def test_many_shards_do_not_need_as_many_open_files(packed, monkeypatch):
    monkeypatch.setattr("petseg.data.shards.files.MAX_OPEN", 2)
    assert len(samples(packed, "train")) == 42


COMPONENT = st.tuples(st.sampled_from(["jpg", "png", "cls"]), st.integers(0, 10**6), st.integers(0, 10**6))
SAME = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**6)), min_size=2, max_size=2)


@given(
    entries=st.one_of(
        st.lists(SAME.map(lambda two: [("jpg", *two[0]), ("png", *two[1])]), max_size=6),
        st.lists(st.lists(COMPONENT, min_size=1, max_size=4), max_size=5),
    ),
    damage=st.one_of(
        st.none(), st.tuples(st.integers(0, 400), st.sampled_from([b" ", b"\n", b"\r", b"-", b"7", b"", b"\xff"]))
    ),
)
def test_spans_are_what_the_whole_index_says(tmp_path_factory, entries, damage):
    path = tmp_path_factory.mktemp("spans") / "train-000000.idx"
    data = format_index([
        Entry(f"a{i}", tuple(Component(ext, at, size, f"a{i}.{ext}") for ext, at, size in each))
        for i, each in enumerate(entries)
    ])  # fmt: skip
    if damage:
        data = data[: damage[0]] + damage[1] + data[damage[0] + 1 :]
    path.write_bytes(data)
    try:
        whole = read_index(path)
    except PetsegError:
        with pytest.raises(PetsegError):
            read_spans(path, "jpg", "png")
        return
    parts = [{c.extension: c for c in entry.components} for entry in whole]
    if any("jpg" not in each or "png" not in each for each in parts):
        with pytest.raises(PetsegError, match=r"has no \.jpg or no \.png"):
            read_spans(path, "jpg", "png")
        return
    expected = [[each[ext][part] for ext in ("jpg", "png") for part in (1, 2)] for each in parts]
    found = read_spans(path, "jpg", "png")
    assert found[:, :4].tolist() == expected
    assert [read_key(path, line) for line in found[:, 4].tolist()] == [entry.key for entry in whole]
