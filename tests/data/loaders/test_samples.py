"""petseg's order inside other people's pipelines."""

import copy
import io
import itertools
import json
import pickle
from unittest import mock

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from petseg import Manifest, OrderedSamples
from petseg.data.order import epoch_order
from petseg.data.shards.reader import ShardReader
from petseg.data.tar import split_name
from petseg.errors import PetsegError


@pytest.fixture
def keys(packed):
    """Keys of the train split, in the manifest's order."""
    reader = ShardReader(packed, Manifest.load(packed), "train")
    yield [reader.key(index) for index in range(len(reader))]
    reader.close()


def expected(packed, keys, epoch, seed=3):
    return [keys[index] for index in epoch_order(Manifest.load(packed).split("train").sizes, seed, epoch)]


def test_a_webdataset_pipeline_gets_the_epochs_order_and_decodes_it(packed, keys):
    samples = OrderedSamples(packed, "train", seed=3)
    decode = wds.decode(wds.imagehandler("rgb8", ["jpg"]), wds.imagehandler("l8", ["png"]))
    pipeline = wds.DataPipeline(samples, decode, wds.to_tuple("__key__", "jpg", "png"))
    reader = ShardReader(packed, Manifest.load(packed), "train")
    for epoch in (0, 5):
        samples.set_epoch(epoch)
        found = list(pipeline)
        assert [key for key, _, _ in found] == expected(packed, keys, epoch)
        for key, image, mask in found[:4]:
            pixels, codes = reader.decoded(keys.index(key))
            assert np.abs(image.astype(int) - pixels).max() <= 1
            assert np.array_equal(mask, codes)
    reader.close()


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_divide_the_epoch_and_hear_of_the_next_one(packed, keys, persistent):
    samples = OrderedSamples(packed, "train", seed=3)
    loader = DataLoader(samples, batch_size=None, num_workers=2, persistent_workers=persistent)
    for epoch in (0, 1):
        samples.set_epoch(epoch)
        # Two workers that have every other sample, asked in turns: the order is whole again.
        assert [sample["__key__"] for sample in loader] == expected(packed, keys, epoch)


@pytest.mark.parametrize("training", [True, False])
def test_ranks_divide_it_too(packed, keys, training):
    ranks = [OrderedSamples(packed, "train", seed=3, rank=r, world=4, training=training) for r in range(4)]
    found = [[sample["__key__"] for sample in each] for each in ranks]
    order = expected(packed, keys, 0) if training else keys
    lengths = [10] * 4 if training else [11, 11, 10, 10]
    assert [len(each) for each in found] == lengths
    assert sorted(key for each in found for key in each) == sorted(order[: sum(lengths)])


def test_bytes_are_the_shards_own(packed, keys):
    sample = next(iter(OrderedSamples(packed, "train", training=False)))
    assert sample["__key__"] == keys[0] and sample["__url__"].endswith("train-000000.tar")
    assert Image.open(io.BytesIO(sample["jpg"])).size == Image.open(io.BytesIO(sample["png"])).size


def test_what_is_refused(packed, packed_copy):
    with pytest.raises(PetsegError, match="no split 'holdout'"):
        OrderedSamples(packed, "holdout")
    with pytest.raises(ValueError, match="negative"):
        OrderedSamples(packed, "train").set_epoch(-1)
    tar = next(packed_copy.glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(PetsegError, match="shorter than the manifest says"):
        OrderedSamples(packed_copy, "train")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_may_be_started_in_any_way(packed, keys, method):
    samples = OrderedSamples(packed, "train", seed=3)
    loader = DataLoader(
        samples, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context=method
    )
    for epoch in (0, 1):
        samples.set_epoch(epoch)
        assert [sample["__key__"] for sample in loader] == expected(packed, keys, epoch)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda samples: pickle.loads(pickle.dumps(samples))])
def test_a_copy_is_as_good_and_has_an_epoch_of_its_own(packed, keys, copied):
    samples = OrderedSamples(packed, "train", seed=3)
    samples.set_epoch(2)
    other = copied(samples)
    other.set_epoch(4)
    assert [sample["__key__"] for sample in samples] == expected(packed, keys, 2)
    loader = DataLoader(other, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (4, 5):
        other.set_epoch(epoch)
        assert [sample["__key__"] for sample in loader] == expected(packed, keys, epoch)


@pytest.mark.parametrize("taken", [0, 1, 17, 42])
def test_it_resumes_inside_an_epoch(packed, keys, taken):
    samples = OrderedSamples(packed, "train", seed=3)
    samples.set_epoch(1)
    first = list(itertools.islice(samples, taken))
    state = json.loads(json.dumps(samples.state_dict()))
    other = OrderedSamples(packed, "train", seed=3)
    other.load_state_dict(state)
    assert other.state_dict() == state
    rest = list(other)
    assert [sample["__key__"] for sample in first + rest] == expected(packed, keys, 1)
    assert len(list(other)) == 42, "the epoch after it began where the last one did"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [5, 20])
def test_torchdatas_stateful_data_loader_resumes_it(packed, keys, workers, taken):
    def make():
        samples = OrderedSamples(packed, "train", seed=3)
        samples.set_epoch(1)
        return StatefulDataLoader(samples, batch_size=None, num_workers=workers)

    loader = make()
    first = [sample["__key__"] for sample in itertools.islice(loader, taken)]
    state = loader.state_dict()
    other = make()
    other.load_state_dict(state)
    assert first + [sample["__key__"] for sample in other] == expected(packed, keys, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": 4}, "is of seed 4, not 3"), ({"workers": 2}, "workers"), ({"taken": -1}, "does not fit"),
     ({"surplus": 1}, "not a valid state")],
)  # fmt: skip
def test_a_foreign_state_is_refused(packed, change, words):
    samples = OrderedSamples(packed, "train", seed=3)
    with pytest.raises(PetsegError, match=words):
        samples.load_state_dict({**samples.state_dict(), **change})


def test_a_key_is_looked_up_without_reading_the_whole_index(packed, keys, monkeypatch):
    in_order, shuffled = (OrderedSamples(packed, "train", training=training) for training in (False, True))  # checked
    monkeypatch.setattr("petseg.data.shards.index.read_index", lambda path: pytest.fail("a whole index was parsed"))
    lines = mock.Mock(wraps=split_name)
    monkeypatch.setattr("petseg.data.shards.index.split_name", lines)
    assert [sample["__key__"] for sample in in_order] == keys
    assert lines.call_count == len(keys)
    # Shuffled, the next sample is nearly always of another shard.
    assert sorted(sample["__key__"] for sample in shuffled) == sorted(keys)
    assert lines.call_count == 2 * len(keys)
