import pytest
import torch
from torch import nn

from petseg.errors import PetsegError
from petseg.model.networks import SeedUNet, UNet, build_model, check_size, count_parameters
from petseg.training.auto import training_flops


def test_parameter_counts_and_flops():
    seed = SeedUNet()
    assert count_parameters(seed) == 2_172_163
    assert count_parameters(UNet()) == 7_763_107
    assert training_flops(seed, 100, 100) == pytest.approx(3 * 2 * 3.62e9, rel=2e-3)


@pytest.mark.parametrize("size", [(100, 100), (97, 133), (16, 16)])
@pytest.mark.parametrize(
    "options",
    [
        {"arch": "seed"},
        {"arch": "unet", "width": 4},
        {"arch": "unet", "width": 6, "norm": "group", "upsample": "bilinear"},
    ],
)
def test_outputs_have_the_inputs_size_and_layout(options, size):
    network = build_model(classes=4, **options).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        out = network(torch.rand(2, 3, *size).to(memory_format=torch.channels_last))
    assert out.shape == (2, 4, *size)
    assert out.stride(1) == 1
    p = network.probabilities(out)
    assert p.min() >= 0
    assert p.max() <= 1
    if options["arch"] == "unet":
        torch.testing.assert_close(p.sum(1), torch.ones(2, *size))


@pytest.mark.parametrize("options", [{"arch": "seed"}, {"arch": "unet", "width": 4, "dropout": 0.2}])
def test_gradients_reach_every_parameter(options):
    network = build_model(classes=3, **options)
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before BatchNorm is subtracted again, so only exact absence counts there.
    assert dead == []


def test_seed_batch_norm_follows_relu_with_momentum_001():
    norms = [m for m in SeedUNet().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 8
    assert {m.momentum for m in norms} == {0.01}


def test_group_norm_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    network = UNet(width=8, norm="group", depth=3).train()
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_bad_presets_and_sizes():
    with pytest.raises(PetsegError, match="unknown preset"):
        build_model("vgg", classes=3)
    check_size(UNet(width=2), 16, 16)
    with pytest.raises(PetsegError, match="at least 16 px"):
        check_size(UNet(width=2), 15, 100)
