import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from petseg.config import TrainConfig
from petseg.model.networks import UNet
from petseg.training.muon import LEAST_ROWS, MOMENTUM, Muon, filters_of, whitening
from petseg.training.recipe import build_optimizer

CPU = torch.device("cpu")


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 48), columns=st.integers(1, 80), scale=st.sampled_from([1e-10, 1e-3, 1.0, 1e6]))
def test_singular_values_come_out_near_one(rows, columns, scale):
    g = torch.Generator().manual_seed(rows * 100 + columns)
    matrices = torch.randn(8, rows, columns, generator=g)
    # Some of nearly one direction, which no rounding may turn into an explosion.
    matrices[4:] = matrices[4:, :, :1] @ matrices[4:, :1] + 1e-3 * torch.randn(4, rows, columns, generator=g)
    matrices *= scale
    if rows > columns:
        matrices = matrices.mT
    values = torch.linalg.svdvals(whitening(matrices @ matrices.mT) @ matrices)
    small = torch.linalg.svdvals(matrices)
    # Directions of next to nothing need more steps than are taken.
    assert (values < 1.6).all() and (values[small > 0.02 * small.norm(dim=1, keepdim=True)] > 0.35).all()


def test_no_gradient_is_no_step():
    factors = whitening(torch.zeros(2, 4, 4))
    assert factors.isfinite().all() and not (factors @ torch.zeros(2, 4, 9)).any()


def test_a_filter_steps_along_its_gradient_made_orthogonal():
    torch.manual_seed(0)
    filters = [nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)) for _ in range(2)]
    before = [p.detach().clone() for p in filters]
    optimizer = Muon(
        [
            {"params": filters, "lr": 0.01, "weight_decay": 0.5, "filters": True},
            {"params": [nn.Parameter(torch.ones(1))], "lr": 0.01},
        ]
    )
    for p in filters:
        p.grad = torch.randn_like(p)
    optimizer.step()
    for p, old in zip(filters, before, strict=True):
        u, _, v = torch.linalg.svd(p.grad.flatten(1), full_matrices=False)
        wanted = old * (1 - 0.01 * 0.5) - 0.01 * 0.2 * 36**0.5 * (u @ v).view_as(p)
        step, found = wanted - old, p.detach() - old
        assert nn.functional.cosine_similarity(step.flatten(), found.flatten(), dim=0) > 0.9
        assert 0.7 < found.norm() / step.norm() < 1.4


def test_first_last_and_depthwise_convolutions_are_left_to_adamw():
    network = UNet(width=4, depth=2, stem=2)
    chosen = filters_of(network)
    kept = [
        p for name, p in network.named_parameters() if p.ndim == 4 and name not in {"stem.0.weight", "head.1.weight"}
    ]
    assert [id(p) for p in chosen] == [id(p) for p in kept]
    depthwise = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1))
    assert [tuple(p.shape) for p in filters_of(depthwise)] == [(8, 8, 1, 1)]
    assert filters_of(nn.Linear(3, 3)) == []


def steps(optimizer, network, count):
    g = torch.Generator().manual_seed(1)
    for _ in range(count):
        loss = (network(torch.rand(2, 3, 16, 16, generator=g)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


class Operators(TorchDispatchMode):
    """Counts what would be a kernel on a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or "record_function" in str(func))
        return func(*args, **(kwargs or {}))


def test_squares_are_worked_on_together(monkeypatch):
    found = []
    for rows in (1, 64, 128):
        monkeypatch.setitem(LEAST_ROWS, "cpu", rows)
        torch.manual_seed(0)
        network = UNet()
        optimizer = build_optimizer(network, TrainConfig(optimizer="muon"), CPU)
        for p in network.parameters():
            p.grad = torch.randn_like(p)
        with Operators() as operators:
            optimizer.step()
        found.append((operators.count, network.state_dict()))
    counts = [count for count, _ in found]
    # The first step makes the momenta too.
    assert counts[0] - counts[1] > 50 and counts[1] - counts[2] > 20
    for _, weights in found[1:]:
        torch.testing.assert_close(weights, found[0][1], rtol=1e-4, atol=1e-5)


def test_going_on_from_a_state_is_bit_equal():
    torch.manual_seed(0)
    network = UNet(width=4, depth=3, head_width=0)
    optimizer = build_optimizer(network, TrainConfig(optimizer="muon"), CPU)
    assert isinstance(optimizer, Muon)
    steps(optimizer, network, 2)
    other = copy.deepcopy(network)
    again = build_optimizer(other, TrainConfig(optimizer="muon"), CPU)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for o, n in ((optimizer, network), (again, other)):
        steps(o, n, 3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_a_step_that_does_not_count_leaves_nothing(bad):
    """As fp16's GradScaler asks for it: by a tensor, not by not calling."""
    network = UNet(width=4, depth=2, head_width=0)
    optimizer = build_optimizer(network, TrainConfig(optimizer="muon"), CPU)
    steps(optimizer, network, 1)
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict()["state"]))
    for p in network.parameters():
        p.grad = torch.full_like(p, bad)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), None
    optimizer.step()
    torch.testing.assert_close((network.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    optimizer.found_inf = torch.zeros(())
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not torch.equal(network.state_dict()["head.weight"], before[0]["head.weight"])
    # Whoever has a scaler no more is not held back by the last one's word.
    assert not hasattr(optimizer._adamw, "found_inf") and not hasattr(optimizer._adamw, "grad_scale")


def test_momentum_is_an_average_of_gradients():
    p = nn.Parameter(torch.randn(4, 2, 3, 3))
    optimizer = Muon(
        [{"params": [nn.Parameter(torch.ones(1))], "lr": 0.1}, {"params": [p], "lr": 0.1, "filters": True}]
    )
    p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["momentum"], torch.full_like(p, 1 - MOMENTUM))


@pytest.mark.gpu
def test_a_step_on_a_gpu_is_the_cpus(monkeypatch):
    """TF32, which petseg allows on GPUs, would leave eigenvalues below 0 that explode."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    g = torch.Generator().manual_seed(0)
    grad = (torch.randn(64, 1, generator=g) @ torch.randn(1, 288, generator=g)).view(64, 32, 3, 3)
    grad += 1e-3 * torch.randn(64, 32, 3, 3, generator=g)
    found = []
    for device in ("cpu", "cuda"):
        p, other = (nn.Parameter(torch.ones(shape, device=device)) for shape in ((64, 32, 3, 3), (1,)))
        optimizer = Muon([{"params": [other], "lr": 0.1}, {"params": [p], "lr": 0.1, "filters": True}])
        p.grad = grad.to(device)
        optimizer.step()
        found.append(p.detach().cpu() - 1)
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05 * found[0].abs().max().item())
