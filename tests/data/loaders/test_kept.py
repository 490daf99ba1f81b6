"""Whole images that are kept for crops: the same crops, decoded once, and memory that comes back."""

import os

import numpy as np
import pytest

from petseg import Manifest
from petseg.data.decode.boxes import Fit, Framing
from petseg.data.loaders.child import Task, work
from petseg.data.loaders.crew import Processes, ThreadCrew, tasks_of
from petseg.data.loaders.kept import Kept, slot_bytes
from petseg.data.shards.files import TarFiles
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError

CROP = Fit(kind="crop", scale=(0.25, 3.0), max_share=0.6)


class NoFiles(TarFiles):
    """Reads nothing."""

    def read(self, span):
        raise AssertionError(f"{span} was read again")


@pytest.fixture
def reader(packed):
    made = ShardReader(packed, Manifest.load(packed), "train")
    yield made
    made.close()


@pytest.mark.parametrize("threads", [False, True])
def test_crops_of_kept_images_are_those_of_decoded_ones(load, packed, same, monkeypatch, threads):
    if threads:
        monkeypatch.delattr(os, "memfd_create")
    plain, kept = (load("webdataset", packed, fit=CROP, cache=each) for each in ("none", "host"))
    assert isinstance(kept._engine._crew, ThreadCrew if threads else Processes)
    for _ in range(3):
        for one, other in zip(plain, kept, strict=True):
            assert same(one, other)


def test_a_kept_image_is_not_read_again(packed, reader):
    manifest = Manifest.load(packed)
    slot = slot_bytes(manifest.max_height, manifest.max_width)
    memory = np.zeros(len(reader) * slot, np.uint8)
    kept = Kept(0, slot, len(reader))
    spans = reader.spans(np.arange(5))
    results = []
    for files, epoch in ((TarFiles(), 0), (NoFiles(), 0), (NoFiles(), 1)):
        out = np.zeros(1 << 20, np.uint8)
        framing = Framing((32, 32), CROP, epoch=epoch, codes=bytes(manifest.classes.codes))
        task: Task
        (task,) = tasks_of(0, spans, framing, range(0, 6 * 3072, 3072)[:6], False, 1, kept=kept)
        assert work(task, files, out, memory).failure is None
        results.append(out.tobytes())
    assert results[0] == results[1] != results[2]
    found = kept.find(memory, 3)
    image, codes = reader.decoded(3)
    assert found and np.array_equal(found[0], image) and np.array_equal(found[1], codes)
    assert kept.find(memory, 7) is None


@pytest.mark.parametrize(("image", "mask"), [((8, 8), (8, 9)), ((9, 9), (9, 9))])
def test_what_does_not_fit_its_slot_is_not_kept(image, mask):
    kept = Kept(0, slot_bytes(8, 8), 2)
    memory = np.zeros(kept.ends, np.uint8)
    kept.put(memory, 0, np.ones((*image, 3), np.uint8), np.ones(mask, np.uint8))
    assert not memory.any() and kept.find(memory, 0) is None
    kept.put(memory, 1, np.ones((8, 8, 3), np.uint8), np.ones((8, 8), np.uint8))
    assert kept.find(memory, 1) is not None and kept.find(memory, 0) is None


def test_memory_comes_back_with_the_loader_and_not_while_somebody_writes_to_it(load, packed):
    first = load("webdataset", packed, fit=CROP, cache="host")
    processes, kept = first._engine._crew, first._engine._kept
    list(first)
    memory = processes._shared.upto(kept.ends)
    assert sum(kept.find(memory, sample) is not None for sample in range(kept.samples)) == 40
    other = load("webdataset", packed, fit=CROP)  # so that the processes live on
    iterator = iter(first)
    next(iterator)  # more batches are under way
    first.close()
    assert processes.keep(kept.samples, kept.slot).at != kept.at, "tasks may still write there"
    assert len(list(other)) == 10
    third = load("webdataset", packed, fit=CROP, cache="host")
    memory = processes._shared.upto(third._engine._kept.ends)
    assert not any(third._engine._kept.find(memory, sample) for sample in range(kept.samples))


def test_what_cannot_be_kept_is_said(load, packed):
    with pytest.raises(PetsegError, match="--cache: for crops, whole images are kept by --loader webdataset"):
        load("dali", packed, fit="crop", cache="host")
    with pytest.raises(PetsegError, match="every rank would keep all"):
        load("webdataset", packed, fit="crop", cache="host", rank=0, world=2)
