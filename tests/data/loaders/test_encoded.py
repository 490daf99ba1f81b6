"""What a decoder of images is given, by threads and by processes."""

import gc
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import petseg.data.loaders.build as build
from petseg import Manifest
from petseg.data.decode.boxes import Framing
from petseg.data.decode.masks import decode_mask
from petseg.data.decode.resize import resize_nearest
from petseg.data.loaders.crew import Processes, ThreadCrew, Threads
from petseg.data.loaders.encoded import ALIGNED, read_encoded
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError
from tests.data.loaders.ways import open_loader

SIZE = (40, 48)


@pytest.fixture(params=["threads", "processes"])
def crew(request):
    made = ThreadCrew(Threads(2)) if request.param == "threads" else Processes.shared(2)
    yield made
    made.close()


@pytest.fixture
def reader_of():
    made = []

    def make(shards):
        made.append(ShardReader(shards, Manifest.load(shards), "train", verify=False))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def test_batches_stay_what_they_were(packed, crew, reader_of):
    reader = reader_of(packed)
    taken = []
    for first in (0, 20, 3, 30, 11):
        encoded = read_encoded(reader, crew, np.arange(first, first + 7), Framing(SIZE))
        encoded.check()
        # What is made later must not be written over what is held, be it only a part.
        taken.append((encoded.indices, encoded.images(), encoded.codes()))
        del encoded
    for indices, images, codes in taken:
        for row, index in enumerate(indices.tolist()):
            image, mask = reader.read(index)
            assert images[row].tobytes() == bytes(image)
            assert np.array_equal(codes[row], resize_nearest(decode_mask(mask), *SIZE))


def test_a_damaged_sample_is_said_of_its_batch_alone(packed_copy, crew, reader_of):
    reader = reader_of(packed_copy)
    _, (path, *_), image_at, size, _, _ = reader.spans(np.array([9]))[0]
    with Path(path).open("r+b") as file:
        file.seek(image_at + size - 2)
        file.write(b"\0\0")
    reader = reader_of(packed_copy)
    sound, damaged = (read_encoded(reader, crew, np.arange(k, k + 4), Framing(SIZE)) for k in (0, 8))
    sound.check()
    while not damaged.work.is_done():
        time.sleep(0.01)
    assert sound.is_sound() and not damaged.is_sound()
    for _ in range(2):
        with pytest.raises(PetsegError, match=reader.key(9)):
            damaged.check()


def test_dali_decodes_the_same_from_both(packed, same, monkeypatch):
    """On a GPU it takes processes; what those hand over is the same here."""

    def batches():
        loader = open_loader("dali", packed, batch_size=5, size=SIZE)
        found = [(b, b.images.clone(), b.codes.clone()) for _ in range(3) for b in loader]
        assert all(torch.equal(b.images, images) and torch.equal(b.codes, codes) for b, images, codes in found)
        loader.close()
        return [b for b, *_ in found]

    by_threads = batches()
    monkeypatch.setattr(build, "ThreadCrew", lambda threads: Processes.shared(2))
    for ours, theirs in zip(batches(), by_threads, strict=True):
        assert same(ours, theirs)


def test_rows_begin_with_the_images(packed, crew, reader_of):
    reader = reader_of(packed)
    encoded = read_encoded(reader, crew, np.arange(9), Framing(SIZE))
    encoded.check()
    rows, codes = encoded.rows(), encoded.codes()
    assert isinstance(rows, np.ndarray) and rows.shape[0] == 9 and rows.shape[1] % ALIGNED == 0
    assert rows.shape[1] - ALIGNED < encoded.lengths.max() <= rows.shape[1]
    for index, (row, length) in enumerate(zip(rows, encoded.lengths.tolist(), strict=True)):
        image, mask = reader.read(index)
        assert row[:length].tobytes() == bytes(image)
        assert np.array_equal(codes[index], resize_nearest(decode_mask(mask), *SIZE))


def test_nothing_is_padded_to_an_image_far_larger_than_the_others(packed, crew, reader_of, monkeypatch):
    monkeypatch.setattr("petseg.data.loaders.encoded.MOST_ROOM", 1)
    reader = reader_of(packed)
    encoded = read_encoded(reader, crew, np.arange(9), Framing(SIZE))
    encoded.check()
    rows = encoded.rows()
    assert isinstance(rows, list) and len(encoded.work.memory) < encoded.lengths.sum() + 9 * (40 * 48 + 24) + 1
    assert [row.tobytes() for row in rows] == [bytes(reader.read(index)[0]) for index in range(9)]


def test_an_image_of_no_bytes_is_damaged(packed, crew, reader_of, monkeypatch):
    reader = reader_of(packed)
    spans = [(*span[:3], 0, *span[4:]) for span in reader.spans(np.arange(2))]
    monkeypatch.setattr(reader, "spans", lambda indices: [spans[index] for index in indices])
    with pytest.raises(PetsegError, match="damaged"):
        read_encoded(reader, crew, np.arange(2), Framing(SIZE)).check()


@pytest.mark.parametrize("most_room", [4, 1], ids=["rows", "list"])
def test_dali_holds_no_batch_that_was_received(packed, monkeypatch, most_room):
    """It reads a batch's own memory, which has to stay until the batch is there, and to go then."""
    monkeypatch.setattr("petseg.data.loaders.encoded.MOST_ROOM", most_room)
    made = []

    def noted(*args):
        encoded = read_encoded(*args)
        made.append(weakref.ref(encoded.work.memory))
        return encoded

    monkeypatch.setattr("petseg.data.loaders.dali.read_encoded", noted)
    loader = open_loader("dali", packed, batch_size=3, prefetch_batches=2)
    alive = []
    for _batch in loader:
        gc.collect()
        alive.append(sum(memory() is not None for memory in made))
    loader.close()
    assert len(made) > 12 and max(alive) <= 5
    gc.collect()
    assert not any(memory() is not None for memory in made[:-4])
