import numpy as np
import pytest
import torch

from petseg.classes import IGNORE_INDEX, OXFORD, ClassTable, default_colours
from petseg.errors import PetsegError

VOC = ClassTable.from_dict({"codes": [7, 0, 200], "ignored": [255, 9]})


def test_masks_map_codes_ignored_codes_and_padding_rows():
    codes = torch.tensor([[[7, 0], [200, 255]], [[9, 7], [7, 7]], [[0, 0], [0, 0]]], dtype=torch.uint8)
    masks = VOC.masks(codes, torch.tensor([4, 0, -1]))
    assert masks.dtype == torch.int64
    assert masks.tolist() == [[[0, 1], [2, 255]], [[255, 0], [0, 0]], [[255, 255], [255, 255]]]
    assert VOC.masks(codes)[2].tolist() == [[1, 1], [1, 1]]


def test_codes_and_indices_are_inverse():
    codes = torch.tensor([[[1, 2, 3]]], dtype=torch.uint8)
    back = OXFORD.to_codes(OXFORD.masks(codes).numpy())
    assert back.dtype == np.uint8
    assert back.tolist() == codes.tolist()
    assert OXFORD.lookup()[0] == IGNORE_INDEX


def test_dict_and_toml_round_trip(tmp_path):
    import tomli_w

    for table in (OXFORD, VOC):
        assert ClassTable.from_dict(table.to_dict()) == table
        file = tmp_path / "classes.toml"
        file.write_text(tomli_w.dumps(table.to_dict()))
        assert ClassTable.from_toml(file) == table


GOOD = {"codes": [0, 1], "names": ["a", "b"]}


@pytest.mark.parametrize(
    "change",
    [
        {"codes": [1]}, {"codes": [0, 256]}, {"codes": [0, -1]}, {"codes": [0, True]}, {"codes": [0, 1.0]},
        {"codes": [1, 1]}, {"codes": "ab"}, {"codes": 3}, {"ignored": [1]}, {"ignored": ["x"]}, {"ignored": 255},
        {"names": ["a"]}, {"names": ["a", "a"]}, {"names": ["a", ""]}, {"names": [["a"], ["b"]]}, {"names": [1, 2]},
        {"colours": [[0, 0, 0]]}, {"colours": [[0, 0], [0, 0]]}, {"colours": [[0, 0, 256], [0, 0, 0]]},
        {"colours": [[float("inf"), 0, 0], [0, 0, 0]]}, {"foregrounds": [[5]]}, {"foregrounds": [1]}, {"color": []},
        {"codes": list(range(256)), "names": [str(i) for i in range(256)]},
    ],
)  # fmt: skip
def test_a_bad_table_is_one_sentence(change):
    with pytest.raises(PetsegError) as caught:
        ClassTable.from_dict({**GOOD, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "says"), [("codes = [0,", "not TOML"), ("codes = [3]", "at least 2"),
                                            ("names = []", "write it like this"), ("odd = 1", "'odd'")])  # fmt: skip
def test_a_bad_file_is_named(tmp_path, text, says):
    file = tmp_path / "map.toml"
    file.write_text(text)
    with pytest.raises(PetsegError, match=says) as caught:
        ClassTable.from_toml(file)
    assert str(file) in str(caught.value)
    with pytest.raises(PetsegError, match="cannot be read"):
        ClassTable.from_toml(tmp_path / "none.toml")


def test_default_colours_differ():
    assert len(set(default_colours(40))) == 40


def test_default_colours_are_told_apart_and_none_is_near_black():
    colours = default_colours(256)
    assert len(set(colours)) == 256 and colours[:150] == default_colours(150)
    assert all(max(colour) >= 85 for colour in colours)
    distances = [sum(abs(a - b) for a, b in zip(x, y, strict=True)) for i, x in enumerate(colours[:150])
                 for y in colours[:i]]  # fmt: skip
    assert min(distances) >= 30
