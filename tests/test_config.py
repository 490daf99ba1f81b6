import math

import pytest

from petseg.config import RECIPES, TrainConfig, parse_size, resolve
from petseg.errors import PetsegError


def test_precedence(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("recipe = 'seed'\nepochs = 9\nlr = 1\n")
    config = resolve({"epochs": 3, "width": None}, file)
    assert (config.recipe, config.arch, config.lr, config.epochs, config.width) == ("seed", "seed", 1, 3, 16)
    assert resolve({"recipe": "demo"}, file).ema == RECIPES["demo"]["ema"]
    assert resolve({}) == TrainConfig()


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
