"""One contract over every loader: who comes, in which order, with which pixels, and how it ends."""

import contextlib
import gc
import io
import os
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from benchmarks.noise import NoiseEngine
from petseg import Manifest
from petseg.classes import OXFORD
from petseg.data.loaders.loader import Loader, LoaderPlan
from petseg.data.order import epoch_order
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.reader import ShardReader
from petseg.data.sources.folder import FolderSource
from petseg.errors import PetsegError
from tests.data.loaders.ways import WAYS as LOADERS
from tests.data.loaders.ways import open_loader

CPU = torch.device("cpu")
EVERY = [
    (name, cache)
    for name in LOADERS
    for cache in ("none", "host", "device")
    if (name, cache) != ("nvimgcodec", "device")
]
every_loader = pytest.mark.parametrize(("name", "cache"), EVERY, ids=["-".join(pair) for pair in EVERY])


def indices_of(loader) -> list[list[int]]:
    return [batch.indices.tolist() for batch in loader]


def order_of(shards: Path, epoch: int, seed: int = 0, split: str = "train") -> list[int]:
    return epoch_order(Manifest.load(shards).split(split).sizes, seed, epoch).tolist()


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


# --- who comes, and in which order


@every_loader
def test_training_visits_the_epochs_order_in_full_batches(load, packed, name, cache):
    loader = load(name, packed, cache=cache, batch_size=4, seed=7)
    for epoch in range(3):  # a cache is filled in the first and answers in the others
        assert len(loader) == 42 // 4
        got = indices_of(loader)
        assert got == np.reshape(order_of(packed, epoch, seed=7)[:40], (10, 4)).tolist()
    assert order_of(packed, 0, seed=7) != order_of(packed, 1, seed=7)


@every_loader
def test_evaluation_visits_each_sample_once_and_pads_the_last_batch(load, packed, name, cache):
    loader = load(name, packed, cache=cache, batch_size=5, training=False)
    for _ in range(2):
        assert len(loader) == 9
        batches = list(loader)
        assert flat([b.indices.tolist() for b in batches]) == [*range(42), -1, -1, -1]
        assert not batches[-1].images[2:].any() and not batches[-1].codes[2:].any()
        assert batches[-1].images[:2].any() and batches[-1].codes[:2].any()


@every_loader
def test_batches_have_the_contracts_types(load, packed, name, cache):
    loader = load(name, packed, cache=cache, batch_size=3, size=(20, 28))
    for batch in loader:
        assert (batch.images.shape, batch.images.dtype) == ((3, 20, 28, 3), torch.uint8)
        assert (batch.codes.shape, batch.codes.dtype) == ((3, 20, 28), torch.uint8)
        assert (batch.indices.shape, batch.indices.dtype) == ((3,), torch.int64)
        assert set(batch.codes.unique().tolist()) <= {1, 2, 3}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("training", [True, False])
def test_ranks_share_an_epoch(load, packed, name, training):
    ranks = [load(name, packed, batch_size=5, world=3, rank=rank, training=training) for rank in range(3)]
    seen = [indices_of(loader) for loader in ranks]
    assert len({len(batches) for batches in seen}) == 1
    together = flat([batch for step in zip(*seen, strict=True) for batch in step])
    expected = order_of(packed, 0)[:30] if training else [*range(42), -1, -1, -1]
    assert together == expected


def test_a_rank_with_nothing_left_keeps_in_step(load, packed):
    for name in LOADERS:
        idle = load(name, packed, split="test", batch_size=6, world=3, rank=2, training=False)
        (batch,) = list(idle)
        assert batch.indices.tolist() == [-1] * 6 and not batch.images.any()


# --- pixels


def reference(shards: Path, index: int, size: tuple[int, int], split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """By the contract's own words: full decode and Pillow's antialiased bilinear; integer arithmetic for the codes."""
    reader = ShardReader(shards, Manifest.load(shards), split)
    try:
        image, mask = (Image.open(io.BytesIO(data)) for data in reader.read(index))
        height, width = size
        pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), dtype=np.int16)
        codes = np.asarray(mask)
    finally:
        reader.close()
    rows = [((2 * i + 1) * codes.shape[0]) // (2 * height) for i in range(height)]
    columns = [((2 * i + 1) * codes.shape[1]) // (2 * width) for i in range(width)]
    return pixels, codes[np.ix_(rows, columns)]


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("size", [(100, 100), (97, 133), (128, 128), (224, 224)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("made", ["originals", "packed"])
def test_codes_are_exact_and_images_within_bounds(load, request, name, size, made):
    shards = request.getfixturevalue(made)
    loader = load(name, shards, size=size, batch_size=7, training=False)
    differences = []
    for batch in loader:
        for row, index in enumerate(batch.indices.tolist()):
            if index < 0:
                continue
            image, codes = reference(shards, index, size)
            assert np.array_equal(batch.codes[row].numpy(), codes), f"codes of sample {index} differ"
            differences.append(np.abs(batch.images[row].numpy().astype(np.int16) - image).mean())
    assert len(differences) == Manifest.load(shards).split("train").samples
    assert max(differences) <= 6
    assert np.mean(differences) <= 2


LARGE = ((712, 949), (1000, 1333), (2448, 3264), (3264, 2448), (1536, 2048), (601, 803), (333, 1999), (97, 133))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Shards of one large image of each size, its mask noise: any pixel taken from beside the right one shows."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for number, (height, width) in enumerate(LARGE):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(root / "images" / f"{number}.jpg", quality=90)
        mask = rng.integers(1, 4, (height, width), dtype=np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{number}.png", compress_level=1)
    source = FolderSource(root / "images", root / "masks", OXFORD)
    pack(source, root / "shards", PackOptions(split="random", short_side=0), workers=1, allow_rejects=True)
    return root / "shards"


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("size", [(97, 133), (224, 224), (448, 448), (640, 640)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_codes_of_large_images_are_exact_too(load, large, name, size):
    seen, differences = 0, []
    for split in Manifest.load(large).splits:
        for batch in load(name, large, split=split, size=size, batch_size=2, training=False):
            for row, index in enumerate(batch.indices.tolist()):
                if index < 0:
                    continue
                image, codes = reference(large, index, size, split)
                assert np.array_equal(batch.codes[row].numpy(), codes), f"codes of {split} {index} differ"
                differences.append(np.abs(batch.images[row].numpy().astype(np.int16) - image).mean())
                seen += 1
    assert seen == len(LARGE) and max(differences) <= 6 and np.mean(differences) <= 2


def hard_images(height: int, width: int) -> list[np.ndarray]:
    """What a resize without a filter, or with a poor one, does worst at."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    page = Image.new("L", (width, height), 255)
    for line in range(0, height, 9):
        ImageDraw.Draw(page).text((2, line), "The quick brown fox jumps over the lazy dog. " * 9, fill=0)
    black_or_white = [columns % 2, rows % 2, (rows + columns) % 2, (rows // 2 + columns // 2) % 2, columns // 3 % 2]
    grey = [*(255 * part for part in black_or_white), np.asarray(page)]
    noise = [rng.integers(0, 256, (height, width, 3)), rng.integers(0, 2, (height, width, 1)) * 255]
    return [np.broadcast_to(np.atleast_3d(part), (height, width, 3)).astype(np.uint8) for part in (*grey, *noise)]


@pytest.fixture(scope="module")
def hard(tmp_path_factory) -> Path:
    """Shards of hard images at 128x170, as JPEGs of little loss."""
    root = tmp_path_factory.mktemp("hard")
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for number, image in enumerate(hard_images(128, 170)):
        Image.fromarray(image).save(root / "images" / f"{number}.jpg", quality=98, subsampling=0)
        Image.fromarray(image[..., 0] // 128 + 1).save(root / "masks" / f"{number}.png")
    source = FolderSource(root / "images", root / "masks", OXFORD)
    pack(source, root / "shards", PackOptions(split="random", short_side=0), workers=1, allow_rejects=True)
    return root / "shards"


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("reduction", [1.0, 1.1, 1.28, 1.75, 2.0, 3.5, 8.0])
def test_images_of_any_kind_are_within_the_bound_at_any_reduction(load, hard, name, reduction):
    """128x170 to 100x100 was off by 18 of 255 for noise, 59 for stripes, 21 for a page of text."""
    size = round(128 / reduction), round((100 if reduction == 1.28 else 170) / (1 if reduction == 1.28 else reduction))
    differences = {}
    for split in Manifest.load(hard).splits:
        for batch in load(name, hard, split=split, size=size, batch_size=1, training=False):
            image, codes = reference(hard, int(batch.indices[0]), size, split)
            assert np.array_equal(batch.codes[0].numpy(), codes)
            differences[split, int(batch.indices[0])] = np.abs(batch.images[0].numpy().astype(int) - image)
    assert len(differences) == len(hard_images(8, 8))
    assert np.mean(list(differences.values())) <= 1 and max(each.mean() for each in differences.values()) <= 2
    assert max(each.max() for each in differences.values()) <= 6


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("cache", ["host", "device"])
def test_a_cache_changes_no_pixel(load, packed, same, name, cache):
    plain, cached = load(name, packed), load(name, packed, cache=cache)
    for _ in range(3):
        for a, b in zip(plain, cached, strict=True):
            assert same(a, b)


@every_loader
def test_a_batch_is_the_receivers_own(load, packed, name, cache):
    loader = load(name, packed, cache=cache, prefetch_batches=3)
    kept = [batch for _ in range(2) for batch in loader]
    copies = {
        index: batch.images[row]
        for batch in load(name, packed, training=False)
        for row, index in enumerate(batch.indices.tolist())
    }
    for batch in kept:
        for row, index in enumerate(batch.indices.tolist()):
            assert torch.equal(batch.images[row], copies[index])
        batch.images.zero_()  # writing to it must not reach a cache either
    for batch in loader:
        for row, index in enumerate(batch.indices.tolist()):
            assert torch.equal(batch.images[row], copies[index])


# --- pixels without decoding


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("size", [(64, 64), (97, 133), (20, 28)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_pixels_that_are_stored_as_they_are(load, pixels, name, size):
    seen = 0
    for _ in range(2):
        for batch in load(name, pixels, size=size, batch_size=7, training=False):
            for row, index in enumerate(batch.indices.tolist()):
                if index < 0:
                    continue
                image, codes = reference(pixels, index, size)
                assert np.array_equal(batch.codes[row].numpy(), codes)
                assert np.abs(batch.images[row].numpy().astype(np.int16) - image).max() <= 2
                seen += 1
    assert seen == 2 * 42


@every_loader
def test_pixels_as_they_are_come_in_the_same_order_and_resume(load, packed, pixels, name, cache):
    loader, other = load(name, pixels, cache=cache), load("webdataset", pixels)
    order = np.reshape(order_of(packed, 0)[:40], (10, 4)).tolist()
    states = [source.state_dict() for source in [loader] for _ in loader]
    assert len(states) == 10 and indices_of(loader) == np.reshape(order_of(packed, 1)[:40], (10, 4)).tolist()
    for taken, state in enumerate(states[:-1], start=1):
        other.load_state_dict(state)
        assert indices_of(other) == order[taken:]
    with pytest.raises(PetsegError, match="not the shards"):
        load(name, packed).load_state_dict(states[0])


@every_loader
@pytest.mark.parametrize("what", ["image", "mask"])
def test_a_damaged_header_of_pixels_is_named(load, pixels, tmp_path, name, cache, what):
    copy = Path(shutil.copytree(pixels, tmp_path / "pixels"))
    key = patch(copy, 17, what, lambda data: data[:3] + b"9" + data[4:])
    loader = load(name, copy, cache=cache, verify=False)
    for _ in range(2):
        with pytest.raises(PetsegError, match=rf"sample {key}: {what} is damaged \(\d+ bytes for 9"):
            list(loader)
    with pytest.raises(PetsegError, match="has another SHA-256"):
        load(name, copy)


@pytest.mark.parametrize("name", ["webdataset", "dali"])
def test_a_damaged_sample_of_pixels_is_skipped(load, pixels, tmp_path, name):
    copy = Path(shutil.copytree(pixels, tmp_path / "pixels"))
    patch(copy, 17, "image", lambda data: data[:3] + b"9" + data[4:])
    loader = load(name, copy, training=False, on_bad_sample="skip")
    assert [k for k in flat(indices_of(loader)) if k >= 0] == [k for k in range(42) if k != 17]


# --- state


@every_loader
def test_resumes_after_every_batch_in_the_other_loader(load, packed, name, cache):
    whole = np.reshape(order_of(packed, 0)[:40], (10, 4)).tolist()
    after = np.reshape(order_of(packed, 1)[:40], (10, 4)).tolist()
    other = "dali" if name == "webdataset" else "webdataset"
    source, target = load(name, packed, cache=cache), load(other, packed)
    states = [source.state_dict(), *(source.state_dict() for _ in source)]
    assert [state["consumed"] for state in states] == [*range(0, 40, 4), 0]
    for taken, state in enumerate(states):
        target.load_state_dict(state)
        assert len(target) == (10 - taken or 10)
        assert indices_of(target) == (whole[taken:] or after)


@pytest.mark.parametrize("name", LOADERS)
def test_resumes_with_another_batch_size_and_world(load, packed, name):
    source = load(name, packed, batch_size=4)
    batches = iter(source)
    for _ in range(3):
        next(batches)
    ranks = [load(name, packed, batch_size=5, world=2, rank=rank) for rank in range(2)]
    for loader in ranks:
        loader.load_state_dict(source.state_dict())
    steps = zip(*(indices_of(loader) for loader in ranks), strict=True)
    assert flat([batch for step in steps for batch in step]) == order_of(packed, 0)[12:42]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_sample_is_lost_or_doubled_by_resuming(data):
    sizes = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5), "sizes"))
    seed, window = data.draw(st.integers(0, 99)), data.draw(st.none() | st.integers(1, 4))
    total, consumed, seen = sum(sizes), 0, []
    while total - consumed > 0:
        batch, world = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
        if (total - consumed) // (batch * world) == 0:
            break
        loaders = []
        for rank in range(world):
            plan = LoaderPlan(
                digest="d", split="train", sizes=sizes, batch_size=batch, seed=seed, training=True, rank=rank,
                world=world, window=window,
            )  # fmt: skip
            engine = NoiseEngine(batch_size=batch, device=CPU, codes=(1, 2), seed=0)
            loader = Loader(plan, OXFORD, (1, 1), CPU, engine)
            state = {"digest": "d", "split": "train", "seed": seed, "epoch": 4, "consumed": consumed, "window": window}
            loader.load_state_dict({**state, "format": 1})
            loaders.append(iter(loader))
        for _ in range(data.draw(st.integers(1, (total - consumed) // (batch * world)), "steps")):
            seen += flat([next(loader).indices.tolist() for loader in loaders])
            consumed += batch * world
    assert seen == epoch_order(sizes, seed, 4, window)[: len(seen)].tolist()
    assert len(seen) == consumed


@every_loader
def test_counts_what_was_received_and_not_what_was_made_ahead(load, packed, name, cache):
    loader = load(name, packed, cache=cache, prefetch_batches=4)
    next(iter(loader))
    time.sleep(0.2)
    assert (loader.state_dict()["epoch"], loader.state_dict()["consumed"], len(loader)) == (0, 4, 9)


@every_loader
def test_a_broken_off_epoch_resumes_and_can_restart(load, packed, name, cache):
    loader = load(name, packed, cache=cache)
    order = np.reshape(order_of(packed, 0)[:40], (10, 4)).tolist()
    for taken, batch in enumerate(loader, start=1):
        assert batch.indices.tolist() == order[taken - 1]
        if taken == 3:
            break
    assert indices_of(loader) == order[3:]
    loader.set_epoch(0)
    old = iter(loader)
    next(old)
    loader.set_epoch(0)
    assert indices_of(loader) == order, "batches of an abandoned iteration came out of a later one"
    with pytest.raises(RuntimeError, match="is over: another one was begun"):
        next(old)


@pytest.mark.parametrize("name", LOADERS)
def test_decoding_leaves_torchs_threads_to_the_one_who_trains(load, packed, name):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        next(iter(load(name, packed)))
        found = []
        fresh = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        assert found == [3] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": "0" * 64}, "not the shards"),
        ({"split": "val"}, "split"),
        ({"seed": 8}, "seed"),
        ({"window": 2}, "window"),
        ({"format": 99}, "newer petseg"),
        ({"consumed": 10**6}, "does not fit"),
        ({"epoch": -1}, "does not fit"),
        ({"surplus": 1}, "not a valid loader state"),
    ],
)
def test_refuses_a_foreign_state(load, packed, name, change, words):
    loader = load(name, packed)
    with pytest.raises(PetsegError, match=words):
        loader.load_state_dict({**loader.state_dict(), **change})
    assert indices_of(loader)[0] == order_of(packed, 0)[:4], "a refused state moved the loader"


# --- how it ends


def tasks() -> int:
    """Threads of this process, those of C++ libraries too."""
    return len(list(Path("/proc/self/task").iterdir()))


def descriptors() -> list[str]:
    """What this process has open, by kind: `pipe`, `/memfd`, a path."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(path.readlink()).partition(":")[0])
    return sorted(found)


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@every_loader
def test_close_is_prompt_and_leaves_nothing_behind(packed, name, cache):
    def once(stop_after: int) -> float:
        loader = open_loader(name, packed, size=(64, 64), cache=cache)
        for taken, _ in enumerate(loader):
            if taken == stop_after:
                break
        began = time.perf_counter()
        loader.close()
        seconds = time.perf_counter() - began
        assert list(loader) == [], "a closed loader went on"
        loader.close()
        return seconds

    once(1)  # libraries start pools of their own once
    gc.collect()
    threads, processes = tasks(), children()
    files = Counter(descriptors())
    assert max(once(taken) for taken in (0, 3, 99)) < 3.0
    gc.collect()
    deadline = time.monotonic() + 5
    # What other tests left in this process (Ray's clients) may come and go meanwhile.
    while (tasks() > threads or Counter(descriptors()) - files) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tasks() <= threads
    assert children() == processes
    assert not Counter(descriptors()) - files
    assert not [t.name for t in threading.enumerate() if t.name.startswith("petseg")]


def damage(shards: Path, split: str, index: int, what: str) -> str:
    """Break one sample inside its tar; returns its key."""
    manifest = Manifest.load(shards)
    reader = ShardReader(shards, manifest, split)
    image, mask = (bytes(part) for part in reader.read(index))
    key, tar = reader.key(index), Path(reader.where(index).partition(": ")[0])
    reader.close()
    part = image if what == "image" else mask
    data = bytearray(tar.read_bytes())
    at = data.find(part)
    # The second half goes: whoever pads it with grey instead of saying so is caught.
    data[at + len(part) // 2 : at + len(part)] = bytes(len(part) - len(part) // 2)
    tar.write_bytes(data)
    return key


@every_loader
@pytest.mark.parametrize("what", ["image", "mask"])
def test_a_damaged_sample_is_named(load, packed_copy, name, cache, what):
    key = damage(packed_copy, "train", 17, what)
    loader = load(name, packed_copy, cache=cache, verify=False)
    for _ in range(3):  # whoever goes on after it meets it again, by name
        with pytest.raises(PetsegError, match=rf"train-.*\.tar: sample {key}: {what} is damaged.*petseg verify"):
            list(loader)


@every_loader
def test_batches_before_a_damaged_sample_come_whole(load, packed_copy, name, cache):
    before = 6
    damage(packed_copy, "train", order_of(packed_copy, 0)[4 * before + 1], "mask")
    batches = iter(load(name, packed_copy, cache=cache, verify=False, prefetch_batches=3))
    received = [next(batches).indices.tolist() for _ in range(before) if time.sleep(0.02) is None]
    assert flat(received) == order_of(packed_copy, 0)[: 4 * before]
    with pytest.raises(PetsegError, match="mask is damaged"):
        next(batches)


def patch(shards: Path, index: int, what: str, change) -> str:
    """Apply `change` to a sample's encoded bytes inside its tar, of equal length; returns its key."""
    reader = ShardReader(shards, Manifest.load(shards), "train", verify=False)
    part = bytes(reader.read(index)[0 if what == "image" else 1])
    key, tar = reader.key(index), Path(reader.where(index).partition(": ")[0])
    reader.close()
    data = tar.read_bytes()
    tar.write_bytes(data.replace(part, change(part)))
    return key


def huge_jpeg(data: bytes) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + b"\xf0\xf0\xf0\xf0" + data[at + 9 :]


def huge_png(data: bytes) -> bytes:
    return data[:16] + b"\0\0\xf0\xf0\0\0\xf0\xf0" + data[24:]


@every_loader
@pytest.mark.parametrize(("what", "change"), [("image", huge_jpeg), ("mask", huge_png)], ids=["image", "mask"])
def test_a_bomb_is_refused_by_its_header(load, packed_copy, name, cache, what, change):
    key = patch(packed_copy, 17, what, change)
    loader = load(name, packed_copy, cache=cache, verify=False)
    with pytest.raises(PetsegError, match=rf"sample {key}: {what} is too large \(61680x61680\)"):
        list(loader)


@pytest.mark.parametrize("name", LOADERS)
def test_a_tar_that_shrinks_is_an_error_and_no_crash(load, packed_copy, name):
    loader = load(name, packed_copy, split="val", batch_size=2, training=False)
    (tar,) = packed_copy.glob("val-*.tar")
    os.truncate(tar, 4096)
    with pytest.raises(PetsegError, match="shorter than the manifest says"):
        list(loader)


@every_loader
def test_all_of_a_split_smaller_than_a_batch(load, packed, name, cache):
    loader = load(name, packed, split="test", batch_size=50, training=False, cache=cache)
    for _ in range(3):
        (batch,) = list(loader)
        assert Counter(batch.indices.tolist()) == Counter([*range(6), *[-1] * 44])


def test_a_cache_that_does_not_fit_names_its_bytes(load, packed, monkeypatch):
    monkeypatch.setattr("petseg.data.loaders.cache.available_memory", lambda: 10_000)
    needed = 42 * (32 * 32 * 4 + 16 + 1)
    for cache in ("host", "device"):
        with pytest.raises(PetsegError, match=rf"--cache {cache}: .*\({needed} bytes\)"):
            load("webdataset", packed, cache=cache)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tensorflow", {}, "unknown loader 'tensorflow'; choose auto, dali, webdataset"),
        ("dali", {"split": "holdout"}, "no split 'holdout'"),
        ("webdataset", {"batch_size": 43}, "42 samples, too few"),
        ("webdataset", {"batch_size": 0}, "--batch-size"),
        ("dali", {"batch_size": 16, "rank": 0, "world": 3}, "too few"),
    ],
)
def test_bad_options(load, packed, name, options, words):
    with pytest.raises(PetsegError, match=words):
        load(name, packed, **options)


@pytest.mark.gpu
@every_loader
def test_on_a_gpu_the_codes_are_exact_and_the_images_within_bounds(load, originals, name, cache):
    device = torch.device("cuda", 0)
    loader = load(name, originals, size=(97, 133), batch_size=7, training=False, device=device, cache=cache)
    for _ in range(2):
        differences = []
        for batch in loader:
            assert batch.images.device == batch.codes.device == batch.indices.device == device
            for row, index in enumerate(batch.indices.tolist()):
                if index >= 0:
                    image, codes = reference(originals, index, (97, 133))
                    assert np.array_equal(batch.codes[row].cpu().numpy(), codes)
                    differences.append(np.abs(batch.images[row].cpu().numpy().astype(np.int16) - image).mean())
        assert max(differences) <= 6 and np.mean(differences) <= 2
