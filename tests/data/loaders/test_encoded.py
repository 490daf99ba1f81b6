"""What a decoder of images is given, by threads and by processes."""

import time
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
from petseg.data.loaders.encoded import read_encoded
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
