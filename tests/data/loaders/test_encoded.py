"""What a decoder of images is given, by threads and by processes."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

import petseg.data.loaders.dali as dali
from petseg import Manifest, build_loader
from petseg.data.decode.masks import decode_mask
from petseg.data.decode.resize import resize_nearest
from petseg.data.loaders.encoded import ProcessSource, ThreadSource
from petseg.data.loaders.pool import ReadPool
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError

SIZE = (40, 48)


@pytest.fixture(params=["threads", "processes"])
def source_of(request):
    """Makes a source over a folder's train split, and a reader beside it."""
    made = []

    def make(shards):
        reader = ShardReader(shards, Manifest.load(shards), "train", verify=False)
        pool = ReadPool(reader, 2)
        source = ThreadSource(pool) if request.param == "threads" else ProcessSource(reader, 2)
        made.extend((source, pool))
        return source, reader

    yield make
    for each in made:
        each.close()


def test_batches_come_in_order_and_stay_what_they_were(packed, source_of):
    source, reader = source_of(packed)
    batches = [np.arange(k, k + 7) for k in (0, 20, 3, 30, 11)]
    for indices in batches:
        source.submit(indices, SIZE)
    assert source.waiting() == len(batches)
    taken = []
    for indices in batches:
        taken.append(source.take())
        source.submit(indices, SIZE)  # what is made later must not be written over what is held
    for indices, batch in zip(batches, taken, strict=True):
        assert np.array_equal(batch.indices, indices) and batch.size == SIZE
        for row, index in enumerate(indices.tolist()):
            image, mask = reader.read(index)
            assert batch.images[row].tobytes() == bytes(image)
            assert np.array_equal(batch.codes[row], resize_nearest(decode_mask(mask), *SIZE))


def test_a_damaged_sample_is_said_in_its_turn(packed_copy, source_of):
    source, reader = source_of(packed_copy)
    _, path, image_at, size, _, _ = reader.spans(np.array([9]))[0]
    with Path(path).open("r+b") as file:
        file.seek(image_at + size - 2)
        file.write(b"\0\0")
    source.submit(np.arange(4), SIZE)
    source.submit(np.arange(8, 12), SIZE)
    assert len(source.take().images) == 4
    while not source_is_done(source):
        time.sleep(0.01)
    assert not source.is_ready()
    with pytest.raises(PetsegError, match=reader.key(9)):
        source.take()


def source_is_done(source) -> bool:
    """Whether the oldest batch is done, sound or not."""
    if isinstance(source, ThreadSource):
        return all(task.done() for task in source._batches[0][1])
    workers, ticket = source._workers, source._batches[0].ticket
    return not workers.is_sound(ticket) and not workers._batches[ticket].tasks


def test_dali_decodes_the_same_from_both(packed, same, monkeypatch):
    """On a GPU it takes processes; what those hand over is the same here."""

    def batches():
        loader = build_loader(
            "dali", shards=packed, split="train", batch_size=5, size=SIZE, training=True, num_threads=2
        )
        found = [(b, b.images.clone(), b.codes.clone()) for _ in range(3) for b in loader]
        assert all(torch.equal(b.images, images) and torch.equal(b.codes, codes) for b, images, codes in found)
        loader.close()
        return [b for b, *_ in found]

    by_threads = batches()
    monkeypatch.setattr(dali, "ThreadSource", lambda pool: ProcessSource(pool.reader, 2))
    for ours, theirs in zip(batches(), by_threads, strict=True):
        assert same(ours, theirs)
