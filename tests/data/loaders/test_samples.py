"""petseg's order inside other people's pipelines."""

import io

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from petseg import Manifest, OrderedSamples
from petseg.data.order import epoch_order
from petseg.data.shards.reader import ShardReader
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
            picture, codes = reader.decoded(keys.index(key))
            assert np.abs(image.astype(int) - picture).max() <= 1
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
