"""Sources in a store: the pairs, the bytes and the shards of the same files on a disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from petseg.data import objects
from petseg.data.objects import Objects, opened
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.sources.files import below
from petseg.data.sources.resolve import resolve_source
from petseg.data.sources.stored import StorePath, read_each
from petseg.errors import PetsegError
from tests.data.shards.test_pack import content
from tests.servers import Faults, proxy, s3_server

OPTIONS = PackOptions(split="random", short_side=64, samples_per_shard=4)


@pytest.fixture(scope="module")
def s3():
    with s3_server() as address:
        yield address


@pytest.fixture
def stored(s3, oxford_copy):
    """(a folder of images and masks, the address of the same files)."""
    (oxford_copy / "annotations" / "trimaps").rename(oxford_copy / "masks")
    address = f"s3://bucket/{oxford_copy.parent.name}"
    put(oxford_copy, address)
    return oxford_copy, address


def put(folder: Path, address: str) -> None:
    store = Objects(address)
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path)


def two(root) -> str:
    return f"folder:{root}/images,{root}/masks"


def nameless(listing):
    """Pairs without where they are."""
    return [replace(pair, image="", mask="", more_masks=(), tag="") for pair in listing.pairs]


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_are_those_of_the_local_files(stored, tmp_path, workers):
    folder, address = stored
    local, away = (resolve_source(two(root)) for root in (folder, address))
    one, other = local.listing(), away.listing()
    assert nameless(one) == nameless(other) and (one.rejected, one.ignored) == (other.rejected, other.ignored)
    assert all(pair.tag and pair.image.startswith(address) for pair in other.pairs)
    for pair, mine in zip(other.pairs, one.pairs, strict=True):
        assert away.read(pair) == local.read(mine)
        assert [len(part) <= 1 << 16 for part in away.head(pair)] == [True, True]
    pack(local, tmp_path / "local", OPTIONS, workers=1)
    pack(away, tmp_path / "away", OPTIONS, workers=workers)
    assert content(tmp_path / "away") == content(tmp_path / "local")


def test_one_folder_holds_both_with_patterns_and_lists(stored):
    folder, address = stored
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, keys in (("train", "Drawn_1\nDrawn_2\nDrawn_3\n"), ("val", "Drawn_4\n")):
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(keys)
    put(folder, address)
    for options in ({}, {"pair": ["images/*.jpg=masks/*.png"]}, {"find_lists": False}):
        one, other = (resolve_source(f"folder:{root}", **options).listing() for root in (folder, address))
        assert nameless(one) == nameless(other) and len(one.unlisted) == len(other.unlisted)
        assert bool(one.unlisted) == ("find_lists" not in options)


def test_only_what_changed_is_read_again(stored, s3, tmp_path, monkeypatch):
    _, address = stored
    faults = Faults()
    with proxy(s3, faults) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between)
        opened.cache_clear()
        source = resolve_source(two(address))

        def stop(_):
            if len(list((tmp_path / "out").glob("*.tar"))) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "out", OPTIONS, workers=1, progress=stop)
        faults.requests.clear()
        assert pack(source, tmp_path / "out", OPTIONS, workers=1).resumed_shards >= 2
        read = [request.path for request in faults.requests if "images/" in request.path]
        assert 0 < len(read) < 24 - 2 * 4 + 1
    opened.cache_clear()


def test_a_store_that_fails_now_and_then_is_read(stored, s3, tmp_path, monkeypatch):
    folder, address = stored
    kinds = {7: "503", 20: "reset", 30: "cut"}
    faults = Faults()
    faults.plan = lambda request: kinds.get(len(faults.requests) % 40, "")
    with proxy(s3, faults) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between)
        opened.cache_clear()
        pack(resolve_source(two(address)), tmp_path / "away", OPTIONS, workers=1)
    opened.cache_clear()
    pack(resolve_source(two(folder)), tmp_path / "local", OPTIONS, workers=1)
    assert content(tmp_path / "away") == content(tmp_path / "local")


def test_an_object_that_went_away_is_a_reject(stored, tmp_path):
    _, address = stored
    source = resolve_source(two(address))
    listing = source.listing()
    Objects(address).remove(["images/Drawn_5.jpg"])
    report = pack(source, tmp_path / "out", OPTIONS, workers=1, listing=listing)
    assert [each.key for each in report.rejected] == ["Drawn_5"]
    assert report.rejected[0].reason == "it cannot be read (there is no such object)"


def test_listings_come_in_pages_and_pass_over_what_folders_do(s3, monkeypatch):
    monkeypatch.setattr(objects, "_PAGE", 3)
    store = Objects("s3://bucket/pages")
    names = ["a/1.png", "a/2.png", "a/b/3.png", "c.png", "d.mat", ".hidden/x.png", "a/.4.png", "a", "a/b", "z é+%.png"]
    for name in names:
        store.put(name, b"" if name in {"a", "a/b"} else name.encode())
    found, passed = below(StorePath.of("s3://bucket/pages"))
    assert list(found) == ["a/1.png", "a/2.png", "a/b/3.png", "c.png", "z é+%.png"] and passed == 3
    assert found["c.png"].size == 5 and len({file.tag for file in found.values()}) == 5
    assert StorePath.of("s3://bucket/pages/z é+%.png").read_bytes() == "z é+%.png".encode()
    assert below(StorePath.of("s3://bucket/pages/a"))[0].keys() == {"1.png", "2.png", "b/3.png"}
    assert StorePath.of("s3://bucket/pages/a").read_bytes(10) == b""


def test_paths_of_a_store():
    path = StorePath.of("S3://Bucket/a/b.png")
    assert str(path) == "s3://Bucket/a/b.png" and path.name == "b.png"
    assert str(path.parent) == "s3://Bucket/a" and str(path.parent.parent.parent) == "s3://Bucket"
    assert StorePath.of("gs://b/") == StorePath("gs://b") and str(StorePath("gs://b") / "x") == "gs://b/x"


def test_pairs_are_read_ahead_in_order_and_errors_are_their_own(stored):
    _, address = stored
    pairs = resolve_source(two(address)).listing().pairs

    def read(pair):
        if pair.key == "Drawn_3":
            raise OSError("not this one")
        return pair.key

    found = []
    for pair, result in read_each(read, pairs):
        if pair.key == "Drawn_3":
            with pytest.raises(OSError, match="not this one"):
                result()
        else:
            found.append(result())
    assert found == [pair.key for pair in pairs if pair.key != "Drawn_3"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3://bucket/x", "name what is in a store as folder:IMAGES,MASKS, or as folder:s3://bucket/x"),
        ("folder:s3://bucket/none", "there are no objects below this address"),
        ("folder:s3://bucket/a,s3://other/b", "have to lie in one bucket"),
        ("folder:s3://bucket/a,masks", "have to lie in one bucket"),
        ("folder:s3://none-such/x", "s3://none-such.*there is no such|NoSuchBucket"),
        ("folder:http://127.0.0.1:9/x", "a web server does not list its files"),
        ("tars:s3://bucket/*.tar", "fetch them first"),
    ],
)
def test_what_cannot_be_a_source_is_said(s3, text, words):
    with pytest.raises(PetsegError, match=words):
        resolve_source(text).listing()
