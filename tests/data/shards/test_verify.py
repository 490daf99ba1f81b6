"""What `petseg verify` finds, what `petseg index` takes and refuses, and what `petseg show` shows."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg import Manifest, build_loader
from petseg.classes import OXFORD, ClassTable
from petseg.data.shards.adopt import adopt
from petseg.data.shards.show import TILE, contact_sheet
from petseg.data.shards.verify import verify
from petseg.data.sources.files import MANIFEST_NAME, WORK_FOLDER, named_split
from petseg.data.sources.tars import TarsSource
from petseg.errors import PetsegError
from tests.data.shards.test_pack import content

# --- verify


@pytest.mark.parametrize("made", ["packed", "originals", "pixels"])
def test_sound_shards_have_nothing_to_find(request, made):
    shards = request.getfixturevalue(made)
    seen: list[int] = []
    manifest = Manifest.load(shards)
    assert verify(shards, manifest, progress=seen.append) == []
    assert sum(seen) == sum(split.samples for split in manifest.splits.values())


def test_any_number_of_workers_finds_the_same(packed_copy):
    manifest = Manifest.load(packed_copy)
    tars = sorted(packed_copy.glob("train-*.tar"))
    data = bytearray(tars[0].read_bytes())
    data[3000] ^= 1
    tars[0].write_bytes(data)
    tars[1].with_suffix(".idx").unlink()
    shutil.copy(tars[2], tars[3])
    alone = verify(packed_copy, manifest)
    assert len(alone) > 3 and any("occurs twice" in problem for problem in alone)
    assert verify(packed_copy, manifest, workers=2) == alone


def test_a_check_that_was_broken_off_begins_where_it_was(packed_copy, monkeypatch):
    from petseg.data.shards import verify as module

    manifest = Manifest.load(packed_copy)
    seen = []

    def stop(count):
        seen.append(count)
        if sum(seen) == 30:  # in the fourth shard
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(packed_copy, manifest, progress=stop)
    tars = [packed_copy / shard.name for split in manifest.splits.values() for shard in split.shards]
    data = bytearray(tars[1].read_bytes())  # which was found sound, and changes now
    data[3000] ^= 1
    tars[1].write_bytes(data)
    real, checked = module._Check.__call__, []

    def counted(self, job, report):
        checked.append(job.path)
        return real(self, job, report)

    monkeypatch.setattr(module._Check, "__call__", counted)
    seen.clear()
    problems = verify(packed_copy, manifest, progress=seen.append)
    assert checked == [tars[1], *tars[3:]] and sum(seen) == sum(split.samples for split in manifest.splits.values())
    assert all(tars[1].name in problem for problem in problems) and problems
    checked.clear()
    verify(packed_copy, manifest)
    assert checked == tars, "a check that came to its end is forgotten"


@pytest.mark.parametrize("at", [700, 3000, 9000])
def test_one_flipped_bit_is_found(packed_copy, at):
    tar = next(packed_copy.glob("val-*.tar"))
    data = bytearray(tar.read_bytes())
    data[at] ^= 1
    tar.write_bytes(data)
    problems = verify(packed_copy, Manifest.load(packed_copy))
    assert any(tar.name in problem and "SHA-256" in problem for problem in problems)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tar: tar.unlink(), "cannot be read"),
        (lambda tar: tar.write_bytes(tar.read_bytes()[:30_000]), "ends in the middle|shorter"),
        (lambda tar: tar.write_bytes(tar.read_bytes() + b"x"), "longer"),
        (lambda tar: tar.write_bytes(b"no tar" * 1000), "not a whole, uncompressed tar"),
        (lambda tar: tar.with_suffix(".idx").unlink(), r"\.idx is missing"),
        (lambda tar: tar.with_suffix(".idx").write_text("v1.2 0\n"), r"\.idx does not fit its tar"),
    ],
)
def test_what_is_wrong_is_named(packed_copy, change, words):
    import re

    tar = next(packed_copy.glob("val-*.tar"))
    change(tar)
    problems = verify(packed_copy, Manifest.load(packed_copy))
    assert any(tar.stem in problem and re.search(words, problem) for problem in problems), problems


# --- index


def png(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


RNG = np.random.default_rng(0)


def sample(key: str, height: int = 40, width: int = 56, **members: bytes) -> dict[str, bytes]:
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = RNG.integers(1, 4, (height, width), dtype=np.uint8)
    return {f"{key}.{e}": d for e, d in ({"jpg": jpeg(image), "png": png(mask)} | members).items() if d}


def write_tar(path: Path, *samples: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for one in samples:
            for name, data in one.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_fit_tars_get_an_index_and_a_manifest_and_are_not_touched(tmp_path):
    tars = [
        write_tar(tmp_path / name, *(sample(f"{name[:-4]}_{n}") for n in range(6)))
        for name in ("train-0.tar", "train-1.tar", "shard-val.tar")
    ]
    before = [tar.read_bytes() for tar in tars]
    manifest = adopt(tmp_path, None)
    assert [tar.read_bytes() for tar in tars] == before
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 12, "val": 6}
    assert manifest.classes == OXFORD and (manifest.max_height, manifest.max_width) == (40, 56)
    assert verify(tmp_path, Manifest.load(tmp_path)) == []
    for name in ("dali", "webdataset"):
        loader = build_loader(name, shards=tmp_path, split="train", batch_size=6, size=(16, 16))
        assert [i for batch in loader for i in batch.indices.tolist()] == list(range(12))
        loader.close()


def test_any_number_of_workers_adopts_the_same_and_refuses_the_same(tmp_path):
    for number in range(4):
        write_tar(tmp_path / f"train-{number}.tar", *(sample(f"k{number}_{n}") for n in range(3 + number)))
    ticks = []
    made = [adopt(tmp_path, None, workers=workers, progress=ticks.append) for workers in (1, 2)]
    assert sum(ticks) == 2 * 18
    (tmp_path / MANIFEST_NAME).unlink()
    made.append(adopt(tmp_path, None, workers=2))
    assert made[0] == made[1] == made[2]
    (tmp_path / MANIFEST_NAME).unlink()
    write_tar(tmp_path / "train-9.tar", sample("k2_1"))
    for workers in (1, 2):
        with pytest.raises(
            PetsegError, match=r"train-9\.tar: sample k2_1 does not fit: its key occurs in train-2\.tar"
        ):
            adopt(tmp_path, None, workers=workers)


def test_adopting_that_was_broken_off_is_resumed(packed_copy, tmp_path, monkeypatch):
    from petseg.data.shards import adopt as module

    tars = sorted(packed_copy.glob("*.tar"))
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    for folder in (whole, broken):
        folder.mkdir()
        for tar in tars:
            shutil.copy2(tar, folder)
    expected, seen = adopt(whole, OXFORD), []

    def stop(count):
        seen.append(count)
        if sum(seen) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adopt(broken, OXFORD, progress=stop)
    assert sorted(path.name for path in broken.iterdir()) == [tar.name for tar in tars]
    real, looked_at = module._Look.__call__, []

    def counted(self, job, report):
        looked_at.append(job[0].name)
        return real(self, job, report)

    monkeypatch.setattr(module._Look, "__call__", counted)
    seen.clear()
    assert adopt(broken, OXFORD, progress=seen.append) == expected and content(broken) == content(whole)
    assert 0 < len(looked_at) < len(tars) and sum(seen) == sum(each.samples for each in expected.splits.values())


def test_tars_that_webdataset_wrote_are_fit(tmp_path):
    import webdataset as wds

    with wds.ShardWriter(str(tmp_path / "train-%02d.tar"), maxcount=3, verbose=0) as sink:
        for n in range(6):
            made = sample(f"k{n}")
            sink.write({"__key__": f"k{n}", "jpg": made[f"k{n}.jpg"], "png": made[f"k{n}.png"]})
    assert adopt(tmp_path, None).split("train").samples == 6
    assert verify(tmp_path, Manifest.load(tmp_path)) == []


def test_pixels_that_another_tool_wrote_are_fit(pixels, tmp_path):
    for tar in pixels.glob("*.tar"):
        shutil.copy(tar, tmp_path)
    manifest = adopt(tmp_path, None)
    assert (manifest.encoding.image, manifest.encoding.mask) == ("ppm", "pgm")
    assert manifest.pixel_counts == Manifest.load(pixels).pixel_counts and manifest.mean == Manifest.load(pixels).mean
    assert verify(tmp_path, Manifest.load(tmp_path)) == []


def test_a_lost_index_is_written_anew(packed_copy):
    index = next(packed_copy.glob("train-*.idx"))
    whole, manifest = index.read_bytes(), (packed_copy / MANIFEST_NAME).read_bytes()
    index.unlink()
    adopt(packed_copy, None)
    assert index.read_bytes() == whole and (packed_copy / MANIFEST_NAME).read_bytes() == manifest


def palette() -> bytes:
    image = Image.fromarray(np.full((40, 56), 1, np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def turned_jpeg() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def huge_jpeg() -> bytes:
    data = jpeg(np.zeros((40, 56, 3), np.uint8))
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + b"\xf0\xf0\xf0\xf0" + data[at + 9 :]


def huge_png() -> bytes:
    data = png(np.ones((40, 56), np.uint8))
    return data[:16] + b"\0\0\xf0\xf0\0\0\xf0\xf0" + data[24:]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"png": palette()}, "not an 8-bit grey PNG"),
        ({"png": b"", "seg.png": png(np.ones((40, 56), np.uint8))}, "its members are jpg, seg.png"),
        ({"png": png(np.zeros((40, 56), np.uint8))}, "unknown codes 0"),
        ({"png": png(np.ones((40, 55), np.uint8))}, "mask is 55x40, its image 56x40"),
        ({"jpg": b"", "png": png(np.ones((40, 56), np.uint8))}, "its members are png"),
        ({"jpg": b"\xff\xd8nothing"}, "image is damaged"),
        ({"json": b"{}"}, "its members are jpg, json, png"),
        ({"jpg": turned_jpeg()}, "turned by its EXIF orientation"),
        ({"jpg": huge_jpeg()}, r"image is too large \(61680x61680\)"),
        ({"png": huge_png()}, r"mask is too large \(61680x61680\)"),
    ],
)
def test_unfit_tars_are_sent_to_petseg_shard(tmp_path, members, words):
    write_tar(tmp_path / "train.tar", sample("a"), sample("b", **members))
    with pytest.raises(PetsegError, match=words) as caught:
        adopt(tmp_path, None)
    assert f"petseg-shard 'tars:{tmp_path}/*.tar' OUT" in str(caught.value) and "sample b" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.tar"], "something was half-written"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-0.tar", "train"), ("pets_Train.tar", "train"), ("training-0.tar", "train"), ("train2017.tar", "train"),
        ("val-0.tar", "val"), ("valid-0.tar", "val"), ("validation-000.tar", "val"), ("shard.val.0.tar", "val"),
        ("test-0.tar", "test"), ("testing-0.tar", "test"), ("trainval-0.tar", "trainval"),
        ("latest-0.tar", None), ("interval-0.tar", None), ("trains.tar", None), ("contest.tar", None),
        ("shard-000.tar", None), ("train-test.tar", None),
    ],
)  # fmt: skip
def test_names_speak_of_a_split_by_a_whole_word(tmp_path, name, split):
    assert named_split(name) == split
    write_tar(tmp_path / name, sample("a"))
    expected = "train" if split in {None, "trainval"} else split
    assert list(adopt(tmp_path, None).splits) == [expected]
    assert {pair.split for pair in TarsSource(f"{tmp_path}/*.tar", OXFORD).listing().pairs} == {split}


def sparse_tar(path: Path, layout: str) -> Path:
    """A tar whose map of holes is damaged, in the two layouts of GNU tar's newer formats."""
    info = tarfile.TarInfo("a.jpg")
    info.size = 512
    info.pax_headers = (
        {"GNU.sparse.map": "1,x,3", "GNU.sparse.size": "10"}
        if layout == "0.1"
        else {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9", "GNU.sparse.name": "a.jpg"}
    )
    path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + b"zz\n".ljust(512, b"\0") + bytes(9 * 1024))
    return path


@pytest.mark.parametrize("layout", ["0.1", "1.0"])
def test_a_damaged_sparse_map_is_one_sentence(packed_copy, tmp_path, layout):
    (tmp_path / "tars").mkdir()
    tar = sparse_tar(tmp_path / "tars" / "train.tar", layout)
    with pytest.raises(PetsegError, match=r"train\.tar is not a whole, uncompressed tar"):
        adopt(tmp_path / "tars", None)
    with pytest.raises(PetsegError, match=r"train\.tar is not a whole, uncompressed tar"):
        TarsSource(str(tar), OXFORD).listing()
    shard = next(packed_copy.glob("val-*.tar"))
    sparse_tar(shard, layout)
    problems = verify(packed_copy, Manifest.load(packed_copy))
    assert any(problem.startswith(f"{shard} is not a whole, uncompressed tar") for problem in problems)


def test_a_file_with_holes_is_not_read_as_it_lies(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.size = 512
    info.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": "4096", "GNU.sparse.numblocks": "1"}
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(512) + bytes(9 * 1024))
    with pytest.raises(PetsegError, match=r"holds a\.jpg with holes left out"):
        adopt(tmp_path, None)


def test_an_unfinished_pack_is_no_data_set(packed_copy):
    (packed_copy / MANIFEST_NAME).unlink()
    (packed_copy / WORK_FOLDER).mkdir()
    for use in (
        lambda: adopt(packed_copy, None),
        lambda: Manifest.load(packed_copy),
        lambda: TarsSource(f"{packed_copy}/*.tar", OXFORD).listing(),
    ):
        with pytest.raises(PetsegError, match="holds an unfinished pack: finish it with the petseg-shard command"):
            use()
    assert not (packed_copy / MANIFEST_NAME).exists()


def test_other_classes_come_from_a_map(tmp_path):
    road = ClassTable.from_dict({"codes": [0, 1], "names": ["rest", "road"], "ignored": [255]})
    mask = np.array([[0, 1], [255, 1]], np.uint8).repeat(20, 0).repeat(28, 1)
    write_tar(tmp_path / "a.tar", sample("a", png=png(mask)))
    with pytest.raises(PetsegError, match="unknown codes"):
        adopt(tmp_path, None)
    manifest = adopt(tmp_path, road)
    assert manifest.classes == road and manifest.pixel_counts == {0: 560, 1: 1120, 255: 560}


def test_folders_without_tars(tmp_path):
    with pytest.raises(PetsegError, match="no such folder"):
        adopt(tmp_path / "nowhere", None)
    with pytest.raises(PetsegError, match=r"holds no \.tar"):
        adopt(tmp_path, None)
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(PetsegError, match="not a whole, uncompressed tar"):
        adopt(tmp_path, None)


# --- show


def test_a_contact_sheet_shows_images_and_masks(packed, tmp_path):
    out = tmp_path / "sheet.png"
    assert contact_sheet(packed, out, split="val", count=5) == 5
    first = out.read_bytes()
    sheet = np.asarray(Image.open(out))
    for colour in OXFORD.palette():
        assert (sheet == colour).all(-1).sum() > 100, "a class's colour is missing"
    contact_sheet(packed, out, split="val", count=5)
    assert out.read_bytes() == first
    assert contact_sheet(packed, out, split="test", count=100) == 6


def test_a_contact_sheet_names_every_class_however_many_there_are(tmp_path):
    many = ClassTable.from_dict({"codes": list(range(20)), "names": [f"class with number {n}" for n in range(20)]})
    mask = np.arange(20, dtype=np.uint8).repeat(112).reshape(40, 56)
    write_tar(tmp_path / "a.tar", sample("a", png=png(mask)))
    adopt(tmp_path, many)
    contact_sheet(tmp_path, tmp_path / "sheet.png", count=1)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    above = sheet[: -TILE - 16 - 2 * 8]
    for colour in many.palette():
        assert (above == colour).all(-1).sum() >= 100, "a class is missing from the legend"


def test_a_sheet_that_cannot_be_made(packed, tmp_path):
    with pytest.raises(PetsegError, match="--count"):
        contact_sheet(packed, tmp_path / "a.png", count=0)
    with pytest.raises(PetsegError, match="no split 'holdout'"):
        contact_sheet(packed, tmp_path / "a.png", split="holdout")
    with pytest.raises(PetsegError, match="--out"):
        contact_sheet(packed, tmp_path / "nowhere" / "a.png")
    for folder in (tmp_path, Path()):
        with pytest.raises(PetsegError, match=r"--out: .* is a folder; give the name of a PNG file"):
            contact_sheet(packed, folder)
