"""Where pairs come from: Oxford's folder, any two folders, tars made elsewhere, the download."""

import hashlib
import http.server
import io
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg import Manifest
from petseg.classes import ClassTable
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.verify import verify
from petseg.data.sources import TRAINVAL
from petseg.data.sources.download import FOLDER, download_oxford
from petseg.data.sources.folder import FolderSource
from petseg.data.sources.oxford import OxfordSource
from petseg.data.sources.resolve import resolve_source
from petseg.data.sources.synthetic import SyntheticSource
from petseg.data.sources.tars import TarsSource
from petseg.errors import PetsegError

BINARY = ClassTable.from_dict({"codes": [0, 1], "names": ["rest", "thing"], "ignored": [255]})


def any_image(path: Path, height: int = 40, width: int = 50, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def mask(path: Path, height: int = 40, width: int = 50, codes=(0, 1, 255)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(1).choice(np.array(codes, np.uint8), (height, width))).save(path)
    return path


def reasons(listing) -> dict[str, str]:
    return {r.key: r.reason for r in listing.rejected}


# --- Oxford's layout


def test_oxford_as_published(oxford):
    listing = OxfordSource(oxford).listing()
    assert len(listing.pairs) == 24 and not listing.rejected and not listing.unlisted
    assert listing.ignored == 2  # a .mat and a ._ file
    assert [p.key for p in listing.pairs] == sorted(p.key for p in listing.pairs)
    assert [p.split for p in listing.pairs].count(TRAINVAL) == 16
    image, trimap = OxfordSource(oxford).read(listing.pairs[0])
    assert image[:2] == b"\xff\xd8" and trimap[:4] == b"\x89PNG"
    assert listing.pairs[0].size == len(image) + len(trimap)


def test_oxfords_odd_files_are_named(oxford_copy):
    images, trimaps = oxford_copy / "images", oxford_copy / "annotations" / "trimaps"
    (images / "Drawn_1.jpg").unlink()
    (trimaps / "Drawn_2.png").unlink()
    shutil.copy(images / "Drawn_3.jpg", images / "Drawn_3.jpeg")
    shutil.copy(images / "Drawn_4.jpg", images / "on no list.jpg")
    shutil.copy(trimaps / "Drawn_4.png", trimaps / "on no list.png")
    shutil.copy(images / "Drawn_4.jpg", images / "Extra_1.jpg")
    shutil.copy(trimaps / "Drawn_4.png", trimaps / "Extra_1.png")
    shutil.copy(images / "Drawn_4.jpg", images / "Lonely_1.jpg")
    listing = OxfordSource(oxford_copy).listing()
    assert listing.unlisted == ("Extra_1",)
    assert reasons(listing) == {
        "Drawn_1": "it is on a list but has no image",
        "Drawn_2": "it is on a list but has no mask",
        "Drawn_3": "Drawn_3.jpeg and Drawn_3.jpg have one name",
        "Lonely_1": "image without a mask",
        "on no list": "its name holds characters other than letters, digits, _ and -",
    }


@pytest.mark.parametrize("split", ["official", "random"])
def test_unlisted_pairs_are_left_out_and_named(oxford_copy, tmp_path, split):
    images, trimaps = oxford_copy / "images", oxford_copy / "annotations" / "trimaps"
    shutil.copy(images / "Drawn_4.jpg", images / "Extra_1.jpg")
    shutil.copy(trimaps / "Drawn_4.png", trimaps / "Extra_1.png")
    report = pack(OxfordSource(oxford_copy), tmp_path / "out", PackOptions(split=split, short_side=32), workers=1)
    assert report.unlisted == ("Extra_1",) and not report.rejected
    assert sum(split.samples for split in report.manifest.splits.values()) == 24


def test_a_name_on_both_lists_is_an_error(oxford_copy):
    with (oxford_copy / "annotations" / "test.txt").open("a") as file:
        file.write("Drawn_1 1 1 1\n")
    with pytest.raises(PetsegError, match=r"test\.txt: Drawn_1 is on both lists"):
        OxfordSource(oxford_copy).listing()


def test_a_layout_without_pairs_or_lists(oxford_copy):
    shutil.rmtree(oxford_copy / "images")
    (oxford_copy / "images").mkdir()
    with pytest.raises(PetsegError, match="no pair"):
        OxfordSource(oxford_copy).listing()


# --- any two folders


def test_folders_pair_by_name_whatever_the_suffix_and_ending(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    any_image(images / "a.jpg"), mask(masks / "a.png")
    any_image(images / "city" / "b.png"), mask(masks / "city" / "b_mask.png")
    any_image(images / "c.JPG"), mask(masks / "c_seg.bmp")
    any_image(images / "d e.jpg"), mask(masks / "d e.png")
    any_image(images / "lonely.jpg"), mask(masks / "widow.png")
    (images / ".hidden.jpg").write_bytes(b"")
    (images / "notes.txt").write_text("no image")
    listing = FolderSource(images, masks, BINARY).listing()
    assert [p.key for p in listing.pairs] == ["a", "c", "city-b", "d-e"]
    assert reasons(listing) == {"widow": "mask without an image"}
    assert [(each.where, each.example, each.why) for each in listing.left_over] == [
        ("images", "lonely.jpg", "image without a mask")
    ]
    assert listing.ignored == 1 and all(p.split is None for p in listing.pairs)


def test_two_files_that_would_share_a_key(tmp_path):
    images, masks = tmp_path / "i", tmp_path / "m"
    for name in ("a b", "a_b", "a-b"):
        any_image(images / f"{name}.jpg"), mask(masks / f"{name}.png")
    listing = FolderSource(images, masks, BINARY).listing()
    assert {p.key for p in listing.pairs} == {"a-b", "a_b"} and "same key" in next(iter(reasons(listing).values()))


def test_folders_pack_with_their_class_map(tmp_path):
    for n in range(10):
        any_image(tmp_path / "i" / f"{n}.jpg", seed=n), mask(tmp_path / "m" / f"{n}.png")
    toml = tmp_path / "classes.toml"
    toml.write_text('codes = [0, 1]\nnames = ["rest", "thing"]\nignored = [255]\n')
    source = resolve_source(f"folder:{tmp_path}/i,{tmp_path}/m", classes=ClassTable.from_toml(toml))
    out = tmp_path / "out"
    report = pack(source, out, PackOptions(split="random", short_side=0), workers=1)
    manifest = Manifest.load(out)
    assert sum(split.samples for split in manifest.splits.values()) == 10 and len(manifest.splits) == 3
    assert set(manifest.pixel_counts) == {0, 1, 255} and not report.rejected
    assert verify(out, manifest) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: [(root / n).mkdir() for n in "im"], r"no pair of image and mask is left \(0 images, 0 masks\)"),
        (lambda root: [any_image(root / "i" / "a.jpg"), mask(root / "m" / "b.png")], r"\(1 images, 1 masks\)"),
    ],
)
def test_folders_without_pairs(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(PetsegError, match=words):
        FolderSource(tmp_path / "i", tmp_path / "m", BINARY).listing()


# --- tars made elsewhere


def foreign_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def palette(codes: np.ndarray) -> bytes:
    image = Image.fromarray(codes, "P")
    image.putpalette(list(range(256)) * 3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_tars_with_other_names_and_palette_masks_are_repacked(tmp_path):
    codes = np.random.default_rng(0).integers(0, 2, (40, 50), dtype=np.uint8)
    jpeg = any_image(tmp_path / "a.jpg").read_bytes()
    for split in ("train", "val"):
        members = [
            (f"d/{split}{n}.{extension}", data)
            for n in range(3)
            for extension, data in (("image.jpg", jpeg), ("seg.png", palette(codes)), ("json", b"{}"))
        ]
        foreign_tar(tmp_path / f"{split}-0.tar", *members)
    source = TarsSource(f"{tmp_path}/*.tar", BINARY)
    listing = source.listing()
    assert [p.split for p in listing.pairs] == ["train"] * 3 + ["val"] * 3 and not listing.rejected
    out = tmp_path / "out"
    pack(source, out, PackOptions(split="official", short_side=0), workers=1)
    manifest = Manifest.load(out)
    assert {n: s.samples for n, s in manifest.splits.items()} == {"train": 3, "val": 3}
    assert manifest.pixel_counts == {0: 6 * int((codes == 0).sum()), 1: 6 * int((codes == 1).sum()), 255: 0}
    assert verify(out, manifest) == []


def test_petsegs_own_shards_repack(packed, tmp_path):
    source = resolve_source(f"tars:{packed}/*.tar")
    pack(source, tmp_path / "out", PackOptions(split="official", short_side=32), workers=1)
    before, after = Manifest.load(packed), Manifest.load(tmp_path / "out")
    assert {n: s.samples for n, s in after.splits.items()} == {n: s.samples for n, s in before.splits.items()}


def test_tars_without_pairs(tmp_path):
    with pytest.raises(PetsegError, match="no such file; quote the pattern"):
        TarsSource(f"{tmp_path}/*.tar", BINARY).listing()
    tar = foreign_tar(tmp_path / "a.tar", ("a.txt", b"words"), ("b.jpg", b"\xff\xd8"))
    with pytest.raises(PetsegError, match=r"no pair .* left .*its members \(txt\) are not one image and one mask"):
        TarsSource(str(tar), BINARY).listing()
    tar.write_bytes(b"no tar at all")
    with pytest.raises(PetsegError, match="not a whole, uncompressed tar"):
        TarsSource(str(tar), BINARY).listing()


def test_hostile_members_stay_data(tmp_path):
    foreign_tar(
        tmp_path / "a.tar", ("../../evil.jpg", b"\xff\xd8"), ("../../evil.png", b"\x89PNG"), ("x.pyd", b"cos\nsystem")
    )
    listing = TarsSource(f"{tmp_path}/a.tar", BINARY).listing()
    assert all(set(p.key) <= set("abcdefghijklmnopqrstuvwxyz-") for p in listing.pairs)


# --- names on the command line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/no/where", "no such folder: /no/where"),
        ("synthetic:many", "give a number"),
        ("synthetic:0", "no samples"),
        ("folder:a", "no such folder: a"),
        ("folder:a,", "two with a comma"),
    ],
)
def test_sources_that_are_none(text, words):
    with pytest.raises(PetsegError, match=words):
        resolve_source(text).listing()


def test_folders_that_are_no_source(tmp_path, oxford):
    with pytest.raises(PetsegError, match="is empty"):
        resolve_source(str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(PetsegError, match="not in the Oxford layout"):
        resolve_source(str(tmp_path))
    with pytest.raises(PetsegError, match="is a file"):
        resolve_source(str(tmp_path / "a.jpg"))
    with pytest.raises(PetsegError, match="--classes"):
        resolve_source(str(oxford), classes=BINARY)
    assert isinstance(resolve_source("synthetic:8"), SyntheticSource)
    assert resolve_source(str(oxford)).name == str(oxford)


# --- the download, from a server on this machine


@pytest.fixture
def publisher(oxford, tmp_path, monkeypatch):
    """torchvision's class, with its addresses and checksums turned to archives that this machine serves."""
    from torchvision.datasets import OxfordIIITPet

    site = tmp_path / "site"
    site.mkdir()
    for name in ("images", "annotations"):
        with tarfile.open(site / f"{name}.tar.gz", "w:gz") as tar:
            tar.add(oxford / name, name)
    (site / "log").write_text("")
    served: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(site))

        def do_GET(self):
            served.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    resources = tuple(
        (f"{address}/{n}.tar.gz", hashlib.md5((site / f"{n}.tar.gz").read_bytes()).hexdigest())
        for n in ("images", "annotations")
    )
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield site, served
    server.shutdown()
    server.server_close()


def test_oxford_is_fetched_once_and_checked(publisher, tmp_path):
    _, served = publisher
    folder = download_oxford(tmp_path / "cache")
    assert folder == tmp_path / "cache" / FOLDER and set(served) == {"/images.tar.gz", "/annotations.tar.gz"}
    served.clear()
    assert len(OxfordSource(folder).listing().pairs) == 24
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [FOLDER]
    assert not list(folder.glob("*.tar.gz"))
    assert download_oxford(tmp_path / "cache") == folder and not served
    assert resolve_source("oxford", download_dir=tmp_path / "cache").name == str(folder)


def test_a_download_that_broke_off_resumes(publisher, tmp_path):
    site, served = publisher
    whole = (site / "annotations.tar.gz").read_bytes()
    (site / "annotations.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PetsegError, match=r"could not be fetched .*run the same command again"):
        download_oxford(tmp_path / "cache")
    assert not (tmp_path / "cache" / FOLDER).exists()
    (site / "annotations.tar.gz").write_bytes(whole)
    served.clear()
    folder = download_oxford(tmp_path / "cache")
    assert set(served) == {"/annotations.tar.gz"}, "the archive that was whole was fetched again"
    assert len(OxfordSource(folder).listing().pairs) == 24


def test_half_unpacked_archives_are_not_taken_for_whole(publisher, tmp_path):
    left = tmp_path / "cache" / f".{FOLDER}.partial" / FOLDER
    any_image(left / "images" / "Drawn_1.jpg")
    (left / "annotations").mkdir()
    assert len(OxfordSource(download_oxford(tmp_path / "cache")).listing().pairs) == 24


def test_no_network_is_one_sentence(publisher, tmp_path, monkeypatch):
    site, _ = publisher
    for archive in site.glob("*.gz"):
        archive.unlink()
    with pytest.raises(PetsegError, match="check the network and the disk"):
        download_oxford(tmp_path / "cache")
