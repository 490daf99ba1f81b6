"""How JPEGs' colour is enlarged: one policy for every way from a file to pixels."""

import numpy as np
import pytest
import simplejpeg
import torch

from petseg import Manifest, PetsegError
from petseg.data.decode.images import chroma_of, policy_of
from petseg.data.decode.resize import resize_image
from petseg.data.shards.reader import ShardReader
from tests.data.loaders.ways import WAYS


def expected(shards, chroma: str, size) -> np.ndarray:
    """u8[n, H, W, 3]: libjpeg-turbo's own upsampling, and the one resize."""
    reader = ShardReader(shards, Manifest.load(shards), "train", verify=False)
    try:
        jpegs = [bytes(reader.read(index)[0]) for index in range(len(reader))]
    finally:
        reader.close()
    decoded = [simplejpeg.decode_jpeg(jpeg, fastupsample=chroma == "simple") for jpeg in jpegs]
    return np.stack([resize_image(image, *size) for image in decoded])


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("name", WAYS)
def test_every_loader_decodes_by_the_policy(load, packed, name, fit):
    found = {}
    for chroma in ("fancy", "simple"):
        loader = load(name, packed, batch_size=6, size=(48, 64), training=False, chroma=chroma, fit=fit)
        batches = [batch.images.numpy().astype(int) for batch in loader]
        found[chroma] = np.concatenate(batches)
        if fit == "squash":
            # The same bytes but for torch's resize.
            off = np.abs(found[chroma] - expected(packed, chroma, (48, 64)))
            assert off.max() <= (1 if name == "nvimgcodec" else 0)
    assert np.abs(found["fancy"] - found["simple"]).mean() > 0.05  # so what is compared above differs at all


@pytest.mark.parametrize("name", ["dali", "webdataset"])
def test_crops_are_decoded_by_the_policy(load, packed, name):
    one, other = (
        torch.cat([batch.images for batch in load(name, packed, fit="crop", size=(32, 32), chroma=chroma)]).int()
        for chroma in ("fancy", "simple")
    )
    assert 0.05 < (one - other).abs().float().mean() < 10


def test_kept_images_are_of_the_policy(load, packed):
    plain, kept = (
        load("webdataset", packed, fit="crop", chroma="simple", cache=cache, seed=3) for cache in ("none", "host")
    )
    for _ in range(2):
        for one, other in zip(plain, kept, strict=True):
            assert torch.equal(one.images, other.images)


def test_a_state_names_the_policy_and_an_older_one_means_fancy(load, packed):
    fancy, simple = (load("webdataset", packed, chroma=chroma) for chroma in ("fancy", "simple"))
    state = fancy.state_dict()
    assert (state.pop("decode"), simple.state_dict()["decode"]) == ("fancy-upsampling", "simple-upsampling")
    fancy.load_state_dict(state)
    with pytest.raises(PetsegError, match=r"decode fancy-upsampling, not simple-upsampling: the images would differ"):
        simple.load_state_dict(state)


def test_policies_have_names():
    assert [chroma_of(policy_of(chroma)) for chroma in ("fancy", "simple")] == ["fancy", "simple"]
    assert chroma_of("") == "fancy" and chroma_of("by-hand") is None
