import math

import pytest

from petseg.config import RECIPES, TrainConfig, layered, parse_size, resolve
from petseg.errors import PetsegError


def test_precedence(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("recipe = 'seed'\nepochs = 9\nlr = 1\n")
    config = resolve({"epochs": 3, "width": None}, file)
    assert (config.recipe, config.arch, config.lr, config.epochs, config.width) == ("seed", "seed", 1, 3, 16)
    assert resolve({"recipe": "demo"}, file).ema == RECIPES["demo"]["ema"]
    assert resolve({}) == TrainConfig()


def test_a_recipe_acts_wherever_it_is_named(tmp_path):
    seed = resolve({"recipe": "seed"})
    assert TrainConfig(recipe="seed") == seed and seed.arch == "seed" and seed.batch_size == 32
    assert TrainConfig(recipe="seed", epochs=7) == resolve({"recipe": "seed", "epochs": 7})
    file = tmp_path / "whole.toml"
    file.write_text(TrainConfig(shards="x").to_toml())
    assert resolve({"recipe": "seed"}, file) == TrainConfig(recipe="seed", shards="x")
    assert resolve({}, None, recipe="demo") == TrainConfig(recipe="demo")


def test_epochs_and_minutes_exclude_each_other(tmp_path):
    with pytest.raises(PetsegError, match="--max-minutes: it sets the number of epochs, so leave --epochs out"):
        resolve({"epochs": 3, "max_minutes": 2.0})
    for written, given, epochs, minutes in (
        ({"max_minutes": 2.0}, {"epochs": 7}, 7, 0.0),
        ({"epochs": 7}, {"max_minutes": 2.0}, 60, 2.0),
        ({"max_minutes": 2.0}, {"lr": 0.1}, 60, 2.0),
    ):
        file = tmp_path / "c.toml"
        file.write_text(TrainConfig(**written).to_toml())
        found = resolve(given, file)
        assert (found.epochs, found.max_minutes) == (epochs, minutes)


def test_layers_put_together_before_are_those_put_together_at_once():
    """As a command that is given again under --auto-resume has them: in one layer over the run's own."""
    once = layered({"max_minutes": 2.0, "recipe": "seed"}, {"epochs": 7, "lr": 0.1})
    assert once["epochs"] == 7 and "max_minutes" not in once and TrainConfig(**once) == resolve(once)
    once = layered({"max_minutes": 2.0}, {"recipe": "demo"})
    assert once["max_minutes"] == 2.0 and TrainConfig(**once) == resolve(once) and once["size"] == "64"


def test_a_repr_is_what_was_given():
    assert repr(TrainConfig(recipe="demo", epochs=3, shards="x")) == "TrainConfig(recipe='demo', shards='x', epochs=3)"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"schedule": "onecycle", "warmup": 0.3}, ["warmup"]),
        ({"recipe": "seed", "width": 8, "norm": "group"}, ["width", "norm"]),
        ({"arch": "smp:Unet:resnet18", "dropout": 0.1}, ["dropout"]),
        ({"optimizer": "adam", "weight_decay": 0.3}, ["weight_decay"]),
        ({"encoder_lr_scale": 0.1}, ["encoder_lr_scale"]),
        ({"recipe": "seed"}, []),
        ({"recipe": "oxford"}, []),
        ({"schedule": "cosine", "warmup": 0.3, "width": 8}, []),
    ],
)
def test_options_that_do_nothing_are_known(options, names):
    assert [name for name, _ in TrainConfig(**options).idle()] == names


@pytest.mark.parametrize("recipe", RECIPES)
def test_toml_round_trip(tmp_path, recipe):
    config = resolve({"recipe": recipe, "shards": 'a "b"\\c', "lr": 1, "size": "97x133"})
    file = tmp_path / "c.toml"
    file.write_text(config.to_toml())
    assert resolve({}, file) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("epochs", 1.5), ("epochs", True), ("batch_size", "8"), ("lr", math.nan), ("lr", math.inf),
        ("lr", -1), ("lr", True), ("dropout", 0.95), ("depth", 9), ("augment", 1), ("arch", "vgg"), ("amp", ["bf16"]),
        ("recipe", "x"), ("recipe", [1]), ("size", 128), ("size", "0"), ("size", "12x"), ("size", "1x2x3"),
        ("size", "9" * 5000), ("size", "-4"), ("seed", -1), ("seed", 2**64), ("shards", 3),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_sentence_that_names_its_flag(name, value):
    with pytest.raises(PetsegError) as caught:
        resolve({name: value})
    assert str(caught.value).startswith(f"--{name.replace('_', '-')}:")
    assert "\n" not in str(caught.value)


def test_a_bad_file_is_named(tmp_path):
    file = tmp_path / "c.toml"
    for text, says in (("epoch = 3", "did you mean 'epochs'"), ("zzz = 1", "--help"), ("lr =", "not TOML"),
                       ("epochs = 0", "--epochs"), ("lr = nan", "--lr")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(PetsegError, match=says) as caught:
            resolve({}, file)
        assert str(file) in str(caught.value)
    with pytest.raises(PetsegError, match="no such file"):
        resolve({}, tmp_path / "none.toml")


def test_size():
    assert parse_size("97x133") == (97, 133)
    assert parse_size("100") == (100, 100)
