"""The loaders' contract for boxes: padded images and crops, the same from every loader."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from petseg import Manifest, OrderedSamples
from petseg.data.decode.boxes import OUTSIDE, Box, Fit, Framing, frame_mask
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError
from tests.data.loaders.ways import WAYS as LOADERS

CROP = Fit(kind="crop", scale=(0.25, 3.0), max_share=0.6)
FITS = [pytest.param(Fit(kind="pad"), id="pad"), pytest.param(CROP, id="crop")]
every_way = pytest.mark.parametrize("name", LOADERS)


def reference(shards, index, box, size):
    """By the contract's own words: full decode, the box cut out, Pillow's bilinear; the codes by `frame_mask`'s."""
    reader = ShardReader(shards, Manifest.load(shards), "train")
    try:
        image, mask = (Image.open(io.BytesIO(data)) for data in reader.read(index))
        canvas = Image.new("RGB", (box.width, box.height), (OUTSIDE,) * 3)
        canvas.paste(image.convert("RGB"), (-box.left, -box.top))
        return np.asarray(canvas.resize(size[::-1], Image.Resampling.BILINEAR), np.int16), np.asarray(mask)
    finally:
        reader.close()


@every_way
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("made", ["originals", "packed"])
def test_boxes_codes_and_images_are_the_contracts(load, request, name, fit, made):
    shards, size = request.getfixturevalue(made), (60, 90)
    loader = load(name, shards, size=size, batch_size=7, training=fit.kind == "crop", fit=fit, seed=5)
    loader.set_epoch(3)
    classes = loader.classes
    framing = Framing(size, fit, 5, 3 if fit.kind == "crop" else 0, bytes(classes.codes), classes.outside)
    differences, padded = [], 0
    for batch in loader:
        masks = batch.masks
        for row, index in enumerate(batch.indices.tolist()):
            if index < 0:
                assert not batch.boxes[row].any()
                continue
            box = Box(*batch.boxes[row].tolist())
            image, mask = reference(shards, index, box, size)
            expected = frame_mask(mask, framing, index)
            assert box == expected[0]
            assert np.array_equal(batch.codes[row].numpy(), expected[1]), f"codes of sample {index} differ"
            outside = expected[1] == classes.outside
            assert (masks[row].numpy()[outside] == -100).all()
            padded += int(outside.sum())
            differences.append(np.abs(batch.images[row].numpy().astype(np.int16) - image).mean())
    assert padded and len(differences) > 10
    assert max(differences) <= 6 and np.mean(differences) <= 2


@every_way
def test_a_crop_depends_on_nothing_but_its_sample_and_epoch(load, packed, name, same):
    def taken(loader, epochs=2):
        found = {}
        for _ in range(epochs):
            epoch = loader.state_dict()["epoch"]
            for batch in loader:
                for index, box, codes, image in zip(
                    batch.indices.tolist(), batch.boxes, batch.codes, batch.images, strict=True
                ):
                    found[epoch, index] = (tuple(box.tolist()), codes.numpy().tobytes(), image.numpy().tobytes())
        return found

    alone = taken(load(name, packed, fit=CROP, batch_size=3, seed=2))
    ranks = [taken(load(name, packed, fit=CROP, batch_size=4, seed=2, world=2, rank=rank)) for rank in range(2)]
    shared = {**ranks[0], **ranks[1]}
    both = alone.keys() & shared.keys()
    assert len(both) > 60 and all(alone[key] == shared[key] for key in both)
    moved = [key for key in alone if key[0] == 0 and (1, key[1]) in alone]
    assert sum(alone[0, i][0] == alone[1, i][0] for _, i in moved) < len(moved) / 4, "each epoch has its own"

    first = load(name, packed, fit=CROP, batch_size=4, seed=2)
    batches = [next(iterator) for iterator in [iter(first)] for _ in range(3)]
    rest = load("webdataset" if name != "webdataset" else "dali", packed, fit=CROP, batch_size=2, seed=2)
    rest.load_state_dict(first.state_dict())
    following = next(iter(rest))
    assert following.indices[0].item() not in {i for batch in batches for i in batch.indices.tolist()}
    box, codes, _ = alone[0, following.indices[0].item()]
    assert tuple(following.boxes[0].tolist()) == box and following.codes[0].numpy().tobytes() == codes


@pytest.mark.parametrize("cache", ["host", "device"])
@pytest.mark.parametrize("kind", ["squash", "pad"])
def test_a_cache_gives_the_same_boxes(load, packed, same, cache, kind):
    plain, cached = (load("webdataset", packed, fit=kind, cache=each) for each in ("none", cache))
    for _ in range(2):
        for one, other in zip(plain, cached, strict=True):
            assert same(one, other) and one.boxes.any(1).all()


def test_squash_shows_whole_images(load, packed):
    for name in LOADERS:
        batch = next(iter(load(name, packed)))
        reader = ShardReader(packed, Manifest.load(packed), "train")
        shapes = [reader.decoded(index)[1].shape for index in batch.indices.tolist()]
        assert batch.boxes.tolist() == [[0, 0, *shape] for shape in shapes]
        reader.close()


def test_samples_in_order_say_the_box_that_a_loader_takes(load, packed):
    for fit in ("pad", CROP):
        samples = OrderedSamples(packed, "train", seed=4, fit=fit, size=(32, 32))
        samples.set_epoch(1)
        loader = load("webdataset", packed, fit=fit, seed=4, batch_size=1)
        loader.set_epoch(1)
        for sample, batch in zip(samples, loader, strict=False):
            assert list(sample["__box__"]) == batch.boxes[0].tolist()
    assert "__box__" not in next(iter(OrderedSamples(packed, "train")))
    with pytest.raises(PetsegError, match="size"):
        OrderedSamples(packed, "train", fit="crop")


def test_a_state_says_the_fit_and_an_older_one_squashed(load, packed):
    loader = load("webdataset", packed)
    next(iter(loader))
    state = loader.state_dict()
    older = {name: state[name] for name in ("digest", "split", "seed", "epoch", "consumed", "window")} | {"format": 1}
    again = load("webdataset", packed)
    again.load_state_dict(older)
    assert again.state_dict() == state
    assert state["format"] == 2 and {n: state[n] for n in ("order", "lanes", "weights", "fit")} == {
        "order": 1, "lanes": 1, "weights": None, "fit": "squash"
    }  # fmt: skip
    for fit in ("pad", CROP):
        other = load("webdataset", packed, fit=fit)
        with pytest.raises(PetsegError, match="of fit squash, not"):
            other.load_state_dict(state)
    finer = load("webdataset", packed, fit=Fit(kind="crop", scale=(0.5, 1.0)))
    with pytest.raises(PetsegError, match="images would differ"):
        finer.load_state_dict(load("webdataset", packed, fit=CROP).state_dict())
    with pytest.raises(PetsegError, match="of lanes 2"):
        again.load_state_dict({**state, "lanes": 2})


def test_crops_are_for_training(load, packed):
    with pytest.raises(PetsegError, match="crops are for training"):
        load("webdataset", packed, fit="crop", training=False)
    with pytest.raises(PetsegError, match="--fit: unknown"):
        load("webdataset", packed, fit="stretch")


def test_a_batch_may_be_made_by_hand():
    from petseg import Batch
    from petseg.classes import OXFORD

    zeros = torch.zeros((1, 2, 2), dtype=torch.uint8)
    assert Batch(zeros[..., None].expand(1, 2, 2, 3), zeros, torch.zeros(1).long(), OXFORD).boxes.shape == (0, 4)
