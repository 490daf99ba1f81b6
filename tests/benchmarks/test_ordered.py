"""DALI's own reader in petseg's order, on the CPU."""

import numpy as np
import pytest
import torch

from benchmarks.gpu.ordered import batches, epoch_of, write_order
from petseg import Manifest, build_loader
from petseg.data.order import epoch_order
from petseg.data.shards.reader import ShardReader

CPU = torch.device("cpu")


def test_order_and_bytes_are_petsegs_in_every_epoch(packed, tmp_path):
    manifest = Manifest.load(packed)
    reader = ShardReader(packed, manifest, "train")
    assert len(manifest.split("train").shards) > 2
    for epoch in range(3):
        order = epoch_order(manifest.split("train").sizes, 7, epoch)
        folder = tmp_path / str(epoch)
        folder.mkdir()
        tars, indices = write_order(packed, "train", order, folder)
        assert 3 < len(tars) == len(indices) < len(order)  # some runs are longer than one sample
        pipe = epoch_of(tars, indices, threads=2, size=32, batch=6, device=CPU, encoded=True)
        for first in range(0, len(order), 6):
            jpegs, pngs = pipe.run()
            for row, index in enumerate(order[first : first + 6].tolist()):
                image, mask = reader.read(index)
                assert np.asarray(jpegs[row]).tobytes() == bytes(image)
                assert np.asarray(pngs[row]).tobytes() == bytes(mask)
    reader.close()


@pytest.mark.parametrize("made", ["packed", "originals"])
@pytest.mark.parametrize("size", [32, 97, 100, 128])
def test_its_codes_are_the_loaders_and_its_images_near_them(request, made, size):
    shards = request.getfixturevalue(made)
    loader = build_loader(
        "webdataset", shards=shards, split="train", batch_size=5, size=(size, size), training=True, seed=3
    )
    sizes = Manifest.load(shards).split("train").sizes
    orders = (epoch_order(sizes, 3, epoch) for epoch in range(2))
    stream = batches(shards, orders, threads=2, size=size, batch=5, device=CPU, chroma="fancy")
    seen = 0
    for _ in range(2):
        for ours in loader:
            images, codes = next(stream)
            assert torch.equal(codes, ours.codes)
            assert (images.int() - ours.images.int()).abs().float().mean((1, 2, 3)).max() < 2
            seen += len(images)
    loader.close()
    assert seen >= 20 and next(stream, None) is None
