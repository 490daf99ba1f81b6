"""Loaders on a GPU, beyond the contract that `tests/data/loaders` holds them all to."""

import itertools

import numpy as np
import pytest
import torch

from petseg import Manifest, build_loader
from petseg.data.loaders.build import make_crew
from petseg.data.loaders.cpu import CpuEngine
from petseg.data.loaders.loader import Loader, LoaderPlan
from petseg.data.shards.reader import ShardReader

pytestmark = pytest.mark.gpu


@pytest.fixture
def load(cuda):
    made = []

    def build(name, shards, **options):
        given = {"split": "train", "batch_size": 4, "size": (40, 48), "training": True, "num_threads": 2, **options}
        made.append(build_loader(name, shards=shards, device=cuda, **given))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


@pytest.mark.parametrize("name", ["dali", "webdataset"])
def test_a_cache_on_the_device_gives_what_the_loader_gives(load, packed, name):
    plain, cached = load(name, packed), load(name, packed, cache="device")
    for _ in range(3):
        for a, b in zip(plain, cached, strict=True):
            assert torch.equal(a.indices, b.indices) and torch.equal(a.codes, b.codes)
            assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("name", ["dali", "webdataset"])
def test_batches_are_channels_last_views_of_what_was_decoded(load, packed, name):
    for batch in load(name, packed):
        assert batch.images.is_contiguous()
        assert batch.images.permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["dali", "webdataset"])
def test_a_batch_is_not_overwritten_while_it_is_held(load, packed, name):
    kept = [(batch, batch.images.clone(), batch.codes.clone()) for batch in itertools.islice(load(name, packed), 9)]
    torch.cuda.synchronize()
    for batch, images, codes in kept:
        assert torch.equal(batch.images, images) and torch.equal(batch.codes, codes)


@pytest.mark.parametrize("name", ["dali", "webdataset"])
def test_loading_does_not_take_more_and_more_memory(load, packed, name):
    loader = load(name, packed, batch_size=8)

    def run(n):
        taken = 0
        while taken < n:
            for batch in loader:
                taken += len(batch.indices)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]

    allocated, free = run(400)
    after, free_after = run(4000)
    assert after <= allocated + 2**20 and free - free_after <= 2**26


def test_processes_feed_a_gpu_with_the_pixels_that_they_feed_a_cpu(packed, cuda):
    manifest = Manifest.load(packed)
    split = manifest.split("train")
    plan = LoaderPlan(
        digest=manifest.digest, split="train", sizes=tuple(split.sizes), batch_size=6, seed=0, training=True
    )
    found = []
    for device in (torch.device("cpu"), cuda):
        engine = CpuEngine(ShardReader(packed, manifest, "train"), make_crew(2), device)
        loader = Loader(plan, manifest.classes, (40, 48), device, engine)
        found.append([(b.images.cpu().numpy().copy(), b.codes.cpu().numpy().copy()) for b in loader])
        loader.close()
    for (a, b), (c, d) in zip(*found, strict=True):
        assert np.array_equal(a, c) and np.array_equal(b, d)


@pytest.mark.parametrize("name", ["dali", "webdataset"])
@pytest.mark.parametrize("kind", ["pad", "crop"])
def test_boxes_are_those_of_the_cpu(load, packed, name, kind):
    options = {"split": "train", "batch_size": 4, "fit": kind, "training": kind == "crop", "seed": 3}
    there, here = load(name, packed, **options), build_loader("webdataset", shards=packed, size=(40, 48), **options)
    try:
        differences = []
        for a, b in zip(there, here, strict=True):
            assert torch.equal(a.boxes, b.boxes) and torch.equal(a.codes.cpu(), b.codes)
            rows = b.indices >= 0
            differences += (a.images.cpu().int() - b.images.int()).abs().float().mean((1, 2, 3))[rows].tolist()
        assert max(differences) <= 6 and np.mean(differences) <= 2
    finally:
        here.close()
