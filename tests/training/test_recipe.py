"""Schedules, optimisers and averaged weights; the `auto` options; checkpoints."""

import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from petseg.classes import OXFORD
from petseg.config import TrainConfig
from petseg.errors import PetsegError
from petseg.inference.trained import load_trained
from petseg.model.networks import UNet
from petseg.run.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from petseg.training import auto
from petseg.training.recipe import Ema, build_optimizer, rate_at, set_rate

CPU = torch.device("cpu")

# --- the learning rate


@given(st.floats(0, 1), st.sampled_from(["cosine", "onecycle", "constant"]))
def test_rates_stay_between_nothing_and_the_highest(progress, schedule):
    assert 0 <= rate_at(progress, TrainConfig(schedule=schedule, lr=0.3)) <= 0.3 * (1 + 1e-12)


@pytest.mark.parametrize(("schedule", "peak"), [("onecycle", 0.3), ("cosine", 0.1)])
def test_rates_rise_to_the_peak_and_fall_to_nothing(schedule, peak):
    config = TrainConfig(schedule=schedule, lr=1.0, warmup=0.1)
    rates = [rate_at(i / 1000, config) for i in range(1001)]
    top = max(range(1001), key=rates.__getitem__)
    assert top / 1000 == pytest.approx(peak, abs=1e-3) and rates[top] == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.04) and rates[-1] == pytest.approx(0, abs=1e-6)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_the_cosine_is_a_cosine():
    config = TrainConfig(schedule="cosine", lr=2.0, warmup=0.2)
    assert rate_at(0.6, config) == pytest.approx(2.0 * (1 + math.cos(math.pi * 0.5)) / 2)


def test_a_rate_reaches_every_group():
    optimizer = build_optimizer(UNet(width=4, depth=2), TrainConfig(optimizer="muon"), CPU)
    set_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125, 0.125]


def test_decay_spares_biases_and_normalisation():
    network = UNet(width=4, depth=2)
    for optimizer in ("muon", "adamw"):
        decayed, spared, *filters = build_optimizer(
            network, TrainConfig(weight_decay=0.3, optimizer=optimizer), CPU
        ).param_groups
        large = [decayed, *filters]
        assert len(filters) == (optimizer != "adamw")
        assert all(group["weight_decay"] == 0.3 for group in large) and spared["weight_decay"] == 0.0
        assert all(p.ndim > 1 for group in large for p in group["params"]) and all(
            p.ndim == 1 for p in spared["params"]
        )
        found = [id(p) for group in (*large, spared) for p in group["params"]]
        assert sorted(found) == sorted(map(id, network.parameters()))
    assert isinstance(build_optimizer(network, TrainConfig(optimizer="adam"), CPU), torch.optim.Adam)


# --- averaged weights


def test_the_average_is_exponential_and_warms_up():
    network = nn.BatchNorm1d(1)
    ema = Ema(network, 0.5)
    expected = 1.0
    for t in range(1, 12):
        with torch.no_grad():
            network.weight.fill_(float(t))
            network.num_batches_tracked.fill_(t)
        ema.advance()
        ema.average()
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * t
        assert ema.network.weight.item() == pytest.approx(expected, rel=1e-5)
        assert ema.network.num_batches_tracked.item() == t
    assert not ema.network.training and not ema.network.weight.requires_grad


# --- auto


@pytest.mark.slow
def test_compile_pays_in_a_long_run_alone(monkeypatch):
    config = TrainConfig(size="128", width=32)
    network = UNet(width=32)
    assert auto.resolve_compile("auto", CPU, network, config, 100) == (False, None)
    assert auto.resolve_compile("auto", CPU, network, config, 10**7) == (False, None), "it halves the speed of a CPU"
    monkeypatch.delenv("CXX", raising=False)
    assert auto.resolve_compile("on", CPU, network, config, 100) == (True, None)
    assert auto.resolve_compile("off", CPU, network, config, 10**7) == (False, None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    chosen, note = auto.resolve_compile("on", CPU, network, config, 10**7)
    assert not chosen and "no C++ compiler" in note
    cuda = torch.device("cuda", 0)
    assert auto.resolve_compile("auto", cuda, network, config, 32 * 100) == (False, None)
    monkeypatch.setattr(auto, "missing_compiler", lambda device: None)
    monkeypatch.setattr(auto, "failing_compiler", lambda device: None)
    assert auto.resolve_compile("auto", cuda, network, config, 10**6) == (True, None)


def test_flops_grow_with_the_image():
    network = UNet(width=8, depth=3)
    small, large = auto.training_flops(network, 32, 32), auto.training_flops(network, 64, 64)
    assert large == pytest.approx(4 * small, rel=0.01)
    x = 3 * 2 * (32 * 32) * (3 * 8 * 9)  # the first convolution alone, forward and backward
    assert small > x


# --- checkpoints


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing", {"some": "thing"}, {"format": "one", "config": {}}, {"format": 99, "config": {}}, {"x": Evil()}],
    ids=["empty", "text", "foreign", "odd format", "newer", "code"],
)
def test_what_is_no_checkpoint_is_refused_and_never_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "best.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(PetsegError, match=r"best\.pt (is|has)"):
        load_checkpoint(path)
    assert not (tmp_path / "pwned").exists()


def test_a_checkpoint_round_trips(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"config": {}, "tensor": torch.arange(4), "plain": [1, "two", None]})
    data = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(data["tensor"], torch.arange(4)) and data["plain"] == [1, "two", None]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    with pytest.raises(PetsegError, match="could not be written"):
        save_checkpoint(tmp_path / "nowhere" / "a.pt", {})


def test_the_best_is_preferred_to_the_last(tmp_path):
    with pytest.raises(PetsegError, match="no such run"):
        checkpoint_path(tmp_path / "nowhere")
    with pytest.raises(PetsegError, match=r"holds no best\.pt and no last\.pt"):
        checkpoint_path(tmp_path)
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).write_bytes(b"")
        assert checkpoint_path(tmp_path).name == name
    assert checkpoint_path(tmp_path / "last.pt").name == "last.pt"


def test_a_damaged_description_is_named(tmp_path):
    network = UNet(width=4, depth=2, stem=2)
    config = TrainConfig(width=4, depth=2).to_dict()
    good = {
        "config": config, "classes": OXFORD.to_dict(), "mean": [0.0] * 3, "std": [1.0] * 3,
        "model": network.state_dict(), "ema": None,
    }  # fmt: skip
    save_checkpoint(tmp_path / "best.pt", good)
    assert not load_trained(tmp_path, CPU).network.training
    for missing in ("classes", "mean", "model"):
        save_checkpoint(tmp_path / "best.pt", {k: v for k, v in good.items() if k != missing})
        with pytest.raises(PetsegError, match=r"best\.pt is damaged"):
            load_trained(tmp_path, CPU)
    save_checkpoint(tmp_path / "best.pt", {**good, "config": {**config, "width": 8}})
    with pytest.raises(PetsegError, match="another architecture"):
        load_trained(tmp_path, CPU)
