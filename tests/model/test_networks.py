import pytest
import torch
from torch import nn

from petseg.classes import OXFORD
from petseg.config import TrainConfig
from petseg.errors import PetsegError
from petseg.model.build import network_for, objective_for
from petseg.model.networks import SeedUNet, UNet, build_model, check_size, count_parameters
from petseg.training.auto import training_flops


def test_parameter_counts_and_flops():
    seed = SeedUNet()
    assert count_parameters(seed) == 2_174_089
    assert count_parameters(UNet()) == 1_290_524, "as petseg-train has it"
    assert count_parameters(UNet(width=32, max_width=512, stem=1)) == 7_763_107
    assert training_flops(seed, 100, 100) == pytest.approx(3 * 2 * 3.639e9, rel=1e-3)


@pytest.mark.parametrize("size", [(100, 100), (97, 133), (16, 16)])
@pytest.mark.parametrize(
    "options",
    [
        {"arch": "seed"},
        {"arch": "unet", "width": 4},
        {"arch": "unet", "width": 6, "norm": "group", "upsample": "bilinear"},
        {"arch": "unet", "width": 4, "depth": 3, "stem": 2},
        {"arch": "unet", "width": 4, "depth": 3, "stem": 3, "norm": "group"},
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


@pytest.mark.parametrize(
    "options", [{"arch": "seed"}, {"arch": "unet", "width": 4, "dropout": 0.2}, {"arch": "unet", "width": 4, "stem": 2}]
)
def test_gradients_reach_every_parameter(options):
    network = build_model(classes=3, **options)
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before BatchNorm is subtracted again, so only exact absence counts there.
    assert dead == []


def conv_relu_bn(below, here):
    return nn.Sequential(nn.Conv2d(below, here, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(here, momentum=0.01))


def conv_t_relu_bn(below, here):
    return nn.Sequential(nn.ConvTranspose2d(below, here, 4, 2, 1), nn.ReLU(), nn.BatchNorm2d(here, momentum=0.01))


class NotebookUNet(nn.Module):
    """The teaching notebook's network as it stands there, module by module."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv_relu_bn(3, 64), conv_relu_bn(64, 64)
        self.conv3, self.conv4 = conv_relu_bn(64, 128), conv_relu_bn(128, 128)
        self.conv5, self.conv6 = conv_relu_bn(128, 256), conv_relu_bn(256, 256)
        self.conv_t1, self.conv7 = conv_t_relu_bn(256, 128), conv_relu_bn(256, 128)
        self.conv_t2, self.conv8 = conv_t_relu_bn(128, 64), conv_relu_bn(128, 64)
        self.conv9 = conv_relu_bn(64, 3)
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x):
        x1 = self.conv2(self.conv1(x))
        x2 = self.conv4(self.conv3(self.pool(x1)))
        x = self.conv6(self.conv5(self.pool(x2)))
        x = self.conv7(torch.cat((self.conv_t1(x), x2), dim=1))
        x = self.conv8(torch.cat((self.conv_t2(x), x1), dim=1))
        return torch.sigmoid(self.conv9(x))


@pytest.mark.parametrize("training", [True, False])
def test_the_seed_network_is_the_notebooks(training):
    torch.manual_seed(0)
    # In fp64, as gradients of other strides are summed in another order.
    theirs, ours = NotebookUNet().double().train(training), SeedUNet().double().train(training)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # unequal everywhere, so that no two layers can be mixed up
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    by_position = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(by_position))
    x = torch.rand(2, 3, 100, 100, dtype=torch.float64)
    a, b = ours(x), theirs(x)
    assert torch.equal(a, b)
    a.square().sum().backward(), b.square().sum().backward()
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, their.grad)
    for mine, their in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(mine, their)


def test_group_norm_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    network = UNet(width=8, norm="group", depth=3).train()
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_a_stem_works_at_half_size():
    plain, folded = UNet(width=8, depth=3, stem=1), UNet(width=8, depth=3, stem=2, head_width=0)
    assert (plain.stride, folded.stride) == (4, 8)
    seen = []
    folded.down[0].register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    folded(torch.zeros(1, 3, 50, 64))
    assert seen == [(1, 8, 28, 32)], "50 rows are padded to 56"
    assert training_flops(folded, 64, 64) < training_flops(plain, 64, 64) / 3


def test_bad_presets_and_sizes():
    with pytest.raises(PetsegError, match="unknown network"):
        build_model("vgg", classes=3)
    check_size(UNet(width=2, stem=1), 16, 16)
    with pytest.raises(PetsegError, match="at least 16 px"):
        check_size(UNet(width=2, stem=1), 15, 100)


@pytest.mark.parametrize(
    "options", [{}, {"arch": "seed"}, {"upsample": "bilinear"}, {"stem": 1}, {"dropout": 0.1}], ids=str
)
def test_batchnorm_gets_gradients_without_gaps_in_its_own_format(options):
    """Else a GPU's BatchNorm in bf16 takes kernels that read with any stride."""
    config = TrainConfig(**options)
    network = network_for(config, OXFORD).to(memory_format=torch.channels_last).train()
    dense = []

    def look(_module, _before, after):
        dense.append(after[0].is_contiguous(memory_format=torch.channels_last))

    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # hooks take no outputs that change later
        if isinstance(module, nn.BatchNorm2d):
            module.register_full_backward_hook(look)
    objective = objective_for(config)
    x = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(x)
    objective.value(objective(outputs, torch.randint(0, 3, (2, 64, 64)))).backward()
    assert len(dense) > 10 and all(dense)
