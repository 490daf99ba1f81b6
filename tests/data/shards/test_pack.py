"""Packing: the same bytes from any number of workers, whole or not there at all, and on after any end."""

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from petseg import Manifest
from petseg.data.shards.index import read_index
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.plan import compact, make_plan, split_of
from petseg.data.shards.sizing import samples_for_bytes
from petseg.data.shards.verify import verify
from petseg.data.sources import TRAINVAL, Listing, Pair
from petseg.data.sources.files import WORK_FOLDER
from petseg.data.sources.oxford import OxfordSource
from petseg.data.sources.synthetic import SyntheticSource
from petseg.errors import PetsegError

OFFICIAL = PackOptions(split="official", short_side=64, samples_per_shard=4)


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def keys(shards: Path, split: str) -> list[str]:
    manifest = Manifest.load(shards)
    return [
        e.key for info in manifest.split(split).shards for e in read_index((shards / info.name).with_suffix(".idx"))
    ]


# --- the plan


def listing(n: int, lists: bool = True) -> Listing:
    pairs = [
        Pair(key=f"k{i}", image="", mask="", size=1, split=(TRAINVAL if i % 2 else "test") if lists else None)
        for i in range(n)
    ]
    return Listing(pairs=tuple(sorted(pairs, key=lambda pair: pair.key)))


@settings(deadline=None)
@given(n=st.integers(1, 90), per_shard=st.integers(1, 30), seed=st.integers(-5, 2**40), official=st.booleans())
def test_a_plan_holds_every_listed_pair_once(n, per_shard, seed, official):
    pairs = listing(n + 1)
    plan = make_plan(pairs, "official" if official else "random", seed, per_shard)
    shards = {name: [pair.key for pair in plan.members(name)] for name in plan.sizes}
    placed = [key for members in shards.values() for key in members]
    assert sorted(placed) == sorted(pair.key for pair in pairs.pairs)
    assert plan.sizes == {name: len(members) for name, members in shards.items()}
    assert all(1 <= size <= per_shard for size in plan.sizes.values())
    sizes = {split: [len(m) for name, m in shards.items() if split_of(name) == split] for split in ("train", "test")}
    assert all(max(s) - min(s) <= 1 for s in sizes.values() if s), "shards of a split differ by more than one sample"
    if official:
        test = {pair.key for pair in pairs.pairs if pair.split == "test"}
        assert {k for name, m in shards.items() if split_of(name) == "test" for k in m} == test
        val = sum(len(m) for name, m in shards.items() if split_of(name) == "val")
        assert val == round(0.1 * (n + 1 - len(test)))


def random_splits(keys: Iterable[str], seed: int = 0, group: str | None = None) -> dict[str, str]:
    pairs = tuple(Pair(key=key, image="", mask="", size=1) for key in sorted(keys))
    plan = make_plan(Listing(pairs=pairs), "random", seed, 1000, group)
    return {pair.key: split_of(name) for name in plan.sizes for pair in plan.members(name)}


def test_random_cuts_at_70_and_90_per_cent_and_is_the_keys_own():
    found = random_splits(f"k{n}" for n in range(10_000))
    counts = Counter(found.values())
    assert counts["train"] == pytest.approx(7000, abs=150) and counts["val"] == pytest.approx(2000, abs=150)
    assert random_splits(found, seed=1) != found


@given(st.sets(st.integers(0, 10**6), min_size=40, max_size=200), st.integers(0, 9), st.booleans())
def test_more_data_moves_nobody_who_was_there(numbers, seed, grouped):
    group = r"^\d" if grouped else None
    keys = sorted(map(str, numbers))
    fewer, more = random_splits(keys[: len(keys) * 3 // 4], seed, group), random_splits(keys, seed, group)
    moved = {key[0] if grouped else key for key, split in fewer.items() if more[key] != split}
    # Those alone who filled a split that chance had left empty.
    assert len(moved) <= 2 and (grouped or len(fewer) < 100 or not moved)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
def test_chance_leaves_no_split_empty_that_could_be_filled(count, seed):
    found = random_splits((f"k{n}" for n in range(count)), seed)
    assert len(found) == count and len(set(found.values())) == min(count, 3)


def test_official_needs_lists():
    with pytest.raises(PetsegError, match="--split random"):
        make_plan(listing(5, lists=False), "official", 0, 4)


# --- the bytes


@pytest.fixture(scope="module")
def reference(oxford, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    pack(OxfordSource(oxford), out, OFFICIAL, workers=1)
    return out


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(oxford, reference, tmp_path, workers):
    ticks: list[int] = []
    planned: list[int] = []
    report = pack(
        OxfordSource(oxford), tmp_path / "out", OFFICIAL, workers=workers, progress=ticks.append, planned=planned.append
    )
    assert content(tmp_path / "out") == content(reference)
    assert (sum(ticks), planned) == (24, [24])
    assert report.ignored == 2 and not report.rejected and report.bytes_in > 0


def test_no_time_path_or_worker_count_gets_in(oxford_copy, reference, tmp_path):
    for path in oxford_copy.rglob("*.jpg"):
        os.utime(path, (1, 1))
    pack(OxfordSource(oxford_copy), tmp_path / "elsewhere", OFFICIAL, workers=1)
    assert content(tmp_path / "elsewhere") == content(reference)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"quality": 80}, {"short_side": 48}, {"split": "random"}, {"encoding": "ppm"}]
)
def test_every_option_counts(oxford, reference, tmp_path, change):
    from dataclasses import replace

    pack(OxfordSource(oxford), tmp_path / "out", replace(OFFICIAL, **change), workers=1)
    assert content(tmp_path / "out") != content(reference)


@pytest.mark.parametrize("options", [{}, {"short_side": 0}, {"encoding": "ppm"}])
def test_shards_by_bytes(oxford, tmp_path, options):
    from dataclasses import replace

    chosen = replace(OFFICIAL, shard_bytes=40_000 if not options else 400_000, **options)
    report = pack(OxfordSource(oxford), tmp_path / "out", chosen, workers=1)
    shards = report.manifest.split("train").shards
    mean = sum(shard.bytes for shard in shards) / len(shards)
    assert 0.5 * chosen.shard_bytes < mean < 1.3 * chosen.shard_bytes  # rounded to whole samples, dealt evenly
    source = OxfordSource(oxford)
    again = replace(
        chosen, shard_bytes=0, samples_per_shard=samples_for_bytes(source, compact(source.listing().pairs), chosen)
    )
    pack(OxfordSource(oxford), tmp_path / "again", again, workers=1)
    assert content(tmp_path / "again") == content(tmp_path / "out")


def test_samples_are_shuffled_over_the_whole_split(reference):
    assert keys(reference, "train") != sorted(keys(reference, "train"), key=lambda key: int(key.split("_")[1]))


def test_the_manifest_counts_what_is_there(reference, oxford):
    manifest = Manifest.load(reference)
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 14, "val": 2, "test": 8}
    assert verify(reference, manifest) == []
    assert manifest.encoding.short_side == 64
    assert set(content(reference)) == {
        "manifest.json",
        *(f"{name}-{n:06d}.{e}" for name, many in (("train", 4), ("val", 1), ("test", 2)) for n in range(many)
          for e in ("tar", "idx")),
    }  # fmt: skip
    assert Manifest.from_dict(json.loads((reference / "manifest.json").read_bytes())) == manifest
    assert 0.2 < min(manifest.mean) < max(manifest.mean) < 0.8


def test_originals_are_kept_to_the_byte(originals, oxford):
    from petseg.data.shards.reader import ShardReader

    manifest = Manifest.load(originals)
    for split in manifest.splits:
        reader = ShardReader(originals, manifest, split)
        for i in range(len(reader)):
            assert bytes(reader.read(i)[0]) == (oxford / "images" / f"{reader.key(i)}.jpg").read_bytes()
        reader.close()


# --- rejects


def test_rejects_are_named_and_move_nobody_else(oxford_copy, reference, tmp_path):
    images, trimaps = oxford_copy / "images", oxford_copy / "annotations" / "trimaps"
    whole = (images / "Drawn_3.jpg").read_bytes()
    (images / "Drawn_3.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((7, 9), 1, np.uint8)).save(trimaps / "Drawn_5.png")
    (trimaps / "Drawn_20.png").unlink()
    report = pack(OxfordSource(oxford_copy), tmp_path / "out", OFFICIAL, workers=2)
    reasons = {r.key: r.reason for r in report.rejected}
    assert set(reasons) == {"Drawn_3", "Drawn_5", "Drawn_20"}
    assert "damaged" in reasons["Drawn_3"] and "mask is 9x7" in reasons["Drawn_5"] and "no mask" in reasons["Drawn_20"]
    assert report.manifest.rejected == report.rejected
    assert verify(tmp_path / "out", Manifest.load(tmp_path / "out")) == []
    gone = {"Drawn_3", "Drawn_5"}
    for split in ("train", "val"):
        assert keys(tmp_path / "out", split) == [key for key in keys(reference, split) if key not in gone]


def test_nothing_is_left_behind_where_no_pair_is_left(oxford_copy, tmp_path):
    for path in (oxford_copy / "images").glob("*.jpg"):
        path.write_bytes(b"nothing")
    with pytest.raises(PetsegError, match="no pair is left to pack: all 24 were rejected"):
        pack(OxfordSource(oxford_copy), tmp_path / "out", OFFICIAL, workers=1)
    assert not (tmp_path / "out").exists()


# --- ends


def start(source: Path, out: Path, environment, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [Path(sys.executable).with_name("petseg-shard"), source, out, "--split", "official", "--short-side", "64",
         "--samples-per-shard", "4", "--workers", "2", *more],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_a_shard(out: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not list(out.glob(f"{WORK_FOLDER}/*.tar.json")):
        assert process.poll() is None and time.monotonic() < deadline, "no shard was finished"
        time.sleep(0.002)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_pack_resumes_to_the_same_bytes(oxford, reference, tmp_path, environment, how):
    out = tmp_path / "out"
    process = start(oxford, out, environment)
    wait_for_a_shard(out, process)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=30)
    if (out / "manifest.json").exists():
        pytest.skip("it was faster than the signal")
    if how != signal.SIGKILL:
        assert process.returncode == 128 + how
        assert stderr.strip() == "error: interrupted: what is finished is kept; run the same command again to resume."
        assert not list(out.rglob(".*.partial-*"))
    with pytest.raises(PetsegError, match="unfinished pack"):
        Manifest.load(out)
    time.sleep(0.3)  # its workers see that their parent is gone
    report = pack(OxfordSource(oxford), out, OFFICIAL, workers=1)
    assert report.resumed_shards >= 1
    assert content(out) == content(reference)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("change", ["image", "mask", "tar", "index"])
def test_a_finished_shard_is_redone_where_its_sources_changed(oxford_copy, tmp_path, change, workers):
    out, source = tmp_path / "out", OxfordSource(oxford_copy)

    def stop_late(_: int, seen=[]) -> None:  # noqa: B006 - it counts
        seen.append(1)
        if len(list(out.glob(f"{WORK_FOLDER}/*.tar.json"))) >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, out, OFFICIAL, workers=1, progress=stop_late)
    finished = json.loads(sorted(out.glob(f"{WORK_FOLDER}/*.tar.json"))[0].read_bytes())
    key = next(iter(finished["digests"]))
    image, mask = oxford_copy / "images" / f"{key}.jpg", oxford_copy / "annotations" / "trimaps" / f"{key}.png"
    tar = out / finished["name"]
    if change == "image":  # another sound JPEG of the same length
        other = next(p for p in (oxford_copy / "images").glob("*.jpg") if p != image).read_bytes()
        data = image.read_bytes()
        image.write_bytes((other + bytes(len(data)))[: len(data)] if len(other) <= len(data) else data[:-9] + bytes(9))
    elif change == "mask":
        data = bytearray(mask.read_bytes())
        data[len(data) // 2] ^= 1
        mask.write_bytes(data)
    elif change == "tar":
        data = bytearray(tar.read_bytes())
        data[700] ^= 1
        tar.write_bytes(data)
    else:
        tar.with_suffix(".idx").write_text("v1.2 0\n")
    report = pack(source, out, OFFICIAL, workers=workers)
    pack(source, tmp_path / "fresh", OFFICIAL, workers=1)
    assert content(out) == content(tmp_path / "fresh")
    assert report.resumed_shards == 2


def test_a_pack_resumes_only_with_its_own_source_and_options(oxford, tmp_path):
    out = tmp_path / "out"

    class Stopped(Exception):
        pass

    def stop(_: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        pack(OxfordSource(oxford), out, OFFICIAL, workers=1, progress=stop)
    with pytest.raises(PetsegError, match=r"unfinished pack of other options \(--short-side: 64 there, 32 here\)"):
        pack(OxfordSource(oxford), out, PackOptions(split="official", short_side=32), workers=1)
    with pytest.raises(PetsegError, match="unfinished pack of another source"):
        pack(OxfordSource(oxford), out, OFFICIAL, workers=1, listing=listing(24))
    pack(OxfordSource(oxford), out, OFFICIAL, workers=1)
    assert verify(out, Manifest.load(out)) == []


def test_an_output_that_holds_something_is_left_alone(packed_copy, tmp_path):
    source, options = SyntheticSource(4), PackOptions(split="random")
    before = content(packed_copy)
    with pytest.raises(PetsegError, match="already holds a finished pack"):
        pack(source, packed_copy, options, workers=1)
    assert content(packed_copy) == before
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("words")
    with pytest.raises(PetsegError, match=r"already holds something else \(chapter1\.tex\)"):
        pack(source, other, options, workers=1)
    with pytest.raises(PetsegError, match="is a file"):
        pack(source, other / "chapter1.tex", options, workers=1)
    assert content(other) == {"chapter1.tex": hashlib.sha256(b"words").hexdigest()}


def test_two_packs_into_one_folder_do_not_mix(oxford, tmp_path, environment):
    first, second = (start(oxford, tmp_path / "out", environment) for _ in range(2))
    errors = [process.communicate(timeout=60)[1] for process in (first, second)]
    codes = sorted([first.returncode, second.returncode])
    assert codes == [0, 2], errors
    assert any("being packed by another process" in e or "already holds a finished pack" in e for e in errors)
    assert verify(tmp_path / "out", Manifest.load(tmp_path / "out")) == []


def test_a_pack_that_was_finished_just_before_the_lock_is_left_alone(oxford, reference, tmp_path, monkeypatch):
    """Another run finishes between this one's look at the folder and its lock."""
    from petseg.data.shards import begun as module

    out, look = tmp_path / "out", module._found
    looks = []

    def look_and_be_overtaken(*args):
        found = look(*args)
        looks.append(1)
        if len(looks) == 1:
            shutil.copytree(reference, out)
        return found

    monkeypatch.setattr(module, "_found", look_and_be_overtaken)
    with pytest.raises(PetsegError, match="already holds a finished pack"):
        pack(OxfordSource(oxford), out, OFFICIAL, workers=1)
    assert content(out) == content(reference)
    assert verify(out, Manifest.load(out)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_it_in_one_sentence_and_can_be_gone_on_from(oxford, reference, tmp_path, workers):
    """A limit on file sizes is the full disk that a test can have: writes fail in the same place."""
    out = tmp_path / "out"
    code = (
        "import resource, signal, sys; from pathlib import Path; import petseg.data.shards.pool;"
        "from petseg.errors import PetsegError; from petseg.data.shards.options import PackOptions;"
        "from petseg.data.shards.pack import pack;"
        "from petseg.data.sources.oxford import OxfordSource\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))\n"
        "    try:\n"
        "        pack(OxfordSource(Path(sys.argv[1])), Path(sys.argv[2]), PackOptions(split='official', short_side=64,"
        f" samples_per_shard=4), workers={workers})\n"
        "    except PetsegError as error:\n"
        "        sys.exit(str(error))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script, oxford, out], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert str(out) in done.stderr and "File too large" in done.stderr
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*partial*"))
    pack(OxfordSource(oxford), out, OFFICIAL, workers=1)
    assert content(out) == content(reference)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 12_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "leave-one-out"}, "official or random"),
        ({"short_side": 5}, "--short-side"),
        ({"short_side": -1}, "--short-side"),
        ({"encoding": "png"}, "--encoding png is unknown: use jpeg or ppm"),
        ({"quality": 0}, "--quality"),
        ({"quality": 101}, "--quality"),
        ({"samples_per_shard": 0}, "--samples-per-shard"),
        ({"shard_bytes": -1}, "--shard-bytes"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(PetsegError, match=words):
        PackOptions(**options)


FAILURES: list[int] = []


class Flaky(OxfordSource):
    """Fails with the errors of `FAILURES` for one pair."""

    def read(self, pair):
        if pair.key == "Drawn_3" and FAILURES:
            raise OSError(FAILURES.pop(), "the network's word for it")
        return OxfordSource.read(self, pair)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_an_error_of_the_disk_or_the_network_is_tried_again_and_then_stops(oxford, tmp_path, monkeypatch, number):
    monkeypatch.setattr("petseg.data.shards.work._PAUSES_S", (0.0, 0.0, 0.0))
    FAILURES[:] = [number] * 3
    assert pack(Flaky(oxford), tmp_path / "out", OFFICIAL, workers=1).manifest.rejected == ()
    FAILURES[:] = [number] * 4
    with pytest.raises(PetsegError, match=r"Drawn_3 cannot be read \(the network's word for it\), and trying"):
        pack(Flaky(oxford), tmp_path / "other", OFFICIAL, workers=1)
    assert content(tmp_path / "out").keys() != content(tmp_path / "other").keys()
    pack(Flaky(oxford), tmp_path / "other", OFFICIAL, workers=1)
    assert content(tmp_path / "other") == content(tmp_path / "out")


def test_a_file_that_is_gone_is_a_reject_at_once(oxford, tmp_path):
    FAILURES[:] = [errno.ENOENT]
    (rejected,) = pack(Flaky(oxford), tmp_path / "out", OFFICIAL, workers=1).manifest.rejected
    assert rejected.key == "Drawn_3"


def test_too_little_memory_is_not_a_damaged_image(oxford, tmp_path, monkeypatch):
    def out_of_memory(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr("petseg.data.decode.rgb.whole_rgb", out_of_memory)
    with pytest.raises(PetsegError, match="not enough memory for one of its images: give fewer --workers"):
        pack(OxfordSource(oxford), tmp_path / "out", OFFICIAL, workers=1)
