"""What a loader submits to its engine, and when."""

import pytest
import torch

from benchmarks.noise import NoiseEngine
from petseg import build_loader
from petseg.classes import OXFORD
from petseg.data.loaders.loader import Loader, LoaderPlan
from petseg.errors import PetsegError

CPU = torch.device("cpu")


class Engine(NoiseEngine):
    """Keeps a record of what is submitted."""

    def __init__(self, batch_size):
        super().__init__(batch_size=batch_size, device=CPU, codes=(1, 2), seed=0)
        self.submitted = []

    def submit(self, indices, size):
        self.submitted.append((indices.tolist(), size))
        super().submit(indices, size)


def make(size=(2, 2), batch_size=2, ahead=2, **options):
    plan = LoaderPlan(digest="d", split="val", sizes=(4, 3), batch_size=batch_size, seed=0, **options)
    engine = Engine(batch_size)
    return Loader(plan, OXFORD, size, CPU, engine, ahead), engine


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_as_many_batches_are_under_way_as_are_asked_for(ahead):
    loader, engine = make(training=True, ahead=ahead)
    for received, _ in enumerate(loader, start=1):
        assert len(engine.submitted) == received + ahead


def test_validation_keeps_what_was_made_ahead_for_its_next_epoch():
    loader, engine = make(training=False)
    for validations in range(1, 4):
        loader.set_epoch(0)
        assert [batch.indices.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, -1]]
        assert len(engine.submitted) == 4 * validations + 2
    assert [indices for indices, _ in engine.submitted[:5]] == [[0, 1], [2, 3], [4, 5], [6], [0, 1]]


def test_a_training_epoch_that_is_asked_for_again_is_made_anew():
    loader, _ = make(training=True)
    first = [batch.indices.tolist() for batch in loader]
    loader.set_epoch(0)
    assert [batch.indices.tolist() for batch in loader] == first


def test_a_rank_with_nothing_left_submits_nothing():
    loader, engine = make(training=False, rank=3, world=4)
    (batch,) = list(loader)
    assert batch.indices.tolist() == [6, -1]
    loader, engine = make(training=False, rank=2, world=3, batch_size=3)
    for _ in range(2):
        (batch,) = list(loader)
        assert batch.indices.tolist() == [6, -1, -1] and batch.images.shape == (3, 2, 2, 3)
    loader, engine = make(training=False, rank=3, world=4, batch_size=3)
    for _ in range(3):
        (batch,) = list(loader)
        assert batch.indices.tolist() == [-1, -1, -1] and not batch.images.any() and not batch.codes.any()
    assert not engine.submitted


@pytest.mark.parametrize("name", ["webdataset", "dali"])
def test_a_size_that_grows_from_epoch_to_epoch(packed, same, name):
    sizes = [(16, 24), (32, 32), (40, 40)]
    loader = build_loader(
        name, shards=packed, split="train", batch_size=5, size=lambda epoch: sizes[min(epoch, 2)], training=True
    )
    fixed = [build_loader(name, shards=packed, split="train", batch_size=5, size=size, training=True) for size in sizes]
    for epoch in range(3):
        fixed[epoch].set_epoch(epoch)
        # Batches of the next epoch are under way while this one is received, and are of their own size.
        for batch, expected in zip(loader, fixed[epoch], strict=True):
            assert batch.images.shape == (5, *sizes[epoch], 3)
            assert same(batch, expected)
    for each in (loader, *fixed):
        each.close()


def test_a_cache_holds_samples_of_one_size(packed):
    with pytest.raises(PetsegError, match=r"--cache: .* one size"):
        build_loader(
            "webdataset", shards=packed, split="train", batch_size=5, size=lambda _: (8, 8), cache="host"
        )  # fmt: skip
