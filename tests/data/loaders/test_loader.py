"""What a loader submits to its engine, and when."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch

from benchmarks.noise import NoiseEngine
from petseg import OrderedSamples, build_loader
from petseg.classes import OXFORD
from petseg.data.loaders import build
from petseg.data.loaders.loader import Loader, LoaderPlan
from petseg.errors import PetsegError

CPU = torch.device("cpu")


class Engine(NoiseEngine):
    """Keeps a record of what is submitted."""

    def __init__(self, batch_size):
        super().__init__(batch_size=batch_size, device=CPU, codes=(1, 2), seed=0)
        self.submitted = []

    def submit(self, indices, framing):
        self.submitted.append((indices.tolist(), framing.size))
        super().submit(indices, framing)


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


def test_a_second_loop_inside_a_loop_over_one_loader_is_refused():
    loader, _ = make(training=True)
    batches = iter(loader)
    next(batches)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="is over: another one was begun"):
        next(batches)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loader_cannot_be_copied_and_says_what_to_do(copied):
    with pytest.raises(TypeError, match="call build_loader in the process that uses it"):
        copied(make(training=True)[0])


def test_a_fork_of_the_process_is_not_given_its_batches(packed):
    script = (
        "import os, sys\nfrom petseg import build_loader\nfrom petseg.errors import PetsegError\n"
        "loader = build_loader('webdataset', shards=sys.argv[1], split='train', batch_size=4, size=(16, 16))\n"
        "batches = iter(loader)\nnext(batches)\n"
        "if not os.fork():\n"
        "    for take in (lambda: next(batches), lambda: list(loader)):\n"
        "        try: take()\n"
        "        except PetsegError as error: assert 'is a fork of it: call build_loader' in str(error)\n"
        "        else: os._exit(1)\n"
        "    loader.close(); del loader\n"
        "    os._exit(0)\n"
        "assert os.wait()[1] == 0\n"
        "assert len(list(batches)) == 10 and len(list(loader)) == 11\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, packed], check=True, timeout=60)


def loader_plan(shards, **given):
    loader = build_loader("webdataset", shards=shards, split="train", batch_size=4, size=(8, 8), **given)
    loader.close()
    return loader.plan


def samples_plan(shards, **given):
    return OrderedSamples(shards, "train", **given)._plan


@pytest.mark.parametrize("make_one", [loader_plan, samples_plan])
def test_ranks_are_torchruns_unless_they_are_given(packed, monkeypatch, make_one):
    assert (make_one(packed).rank, make_one(packed).world) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (make_one(packed).rank, make_one(packed).world) == (1, 3)
    assert (make_one(packed, rank=0, world=1).rank, make_one(packed, rank=0, world=1).world) == (0, 1)
    for given in ({"rank": 1}, {"world": 2}):
        with pytest.raises(PetsegError, match="rank and world: give both"):
            make_one(packed, **given)
    with pytest.raises(PetsegError, match="rank 2 is not one of 2 ranks"):
        make_one(packed, rank=2, world=2)
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(PetsegError, match="RANK: 'one' is not a number"):
        make_one(packed)


def test_dali_that_was_half_uninstalled_is_not_chosen(monkeypatch, tmp_path):
    (tmp_path / "nvidia" / "dali" / "ops").mkdir(parents=True)
    assert build.dali_is_installed()
    monkeypatch.setattr("nvidia.__path__", [str(tmp_path / "nvidia")])
    monkeypatch.delitem(sys.modules, "nvidia.dali", raising=False)
    assert not build.dali_is_installed()
