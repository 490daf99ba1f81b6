"""Copies of an image in two splits: found however they were saved, named with the group that keeps them together."""

import io

import numpy as np
import pytest
from PIL import Image

from petseg.data.shards.copies import find_copies, group_for, look_of
from petseg.data.sources.synthetic import SyntheticSource


def drawn(count: int) -> list[np.ndarray]:
    source = SyntheticSource(count, 5)
    return [np.asarray(Image.open(io.BytesIO(source.read(p)[0])).convert("RGB")) for p in source.listing().pairs]


def again(pixels: np.ndarray, share: float = 1.0, quality: int = 60) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    image.resize((round(image.width * share), round(image.height * share))).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_copies_are_found_however_they_were_saved_and_others_are_not():
    images = drawn(60)
    turns = {
        "saved": lambda a: a,
        "mirror": lambda a: a[:, ::-1],
        "down": lambda a: a[::-1],
        "half": lambda a: a[::-1, ::-1],
    }
    looks = {f"p{n}": look_of(image) for n, image in enumerate(images)}
    split_of = dict.fromkeys(looks, "train")
    for n, (name, turn) in enumerate(turns.items()):
        looks[f"{name}-{n}"], split_of[f"{name}-{n}"] = look_of(again(turn(images[n]), 0.7)), "test"
    looks["inside"], split_of["inside"] = look_of(again(images[9])), "train"  # a copy in one split harms nobody
    copies = find_copies(looks, split_of)
    assert copies is not None and copies.splits == {("train", "test"): 4} and copies.group is None
    assert set(copies.pairs) == {(f"p{n}", f"{name}-{n}") for n, name in enumerate(turns)}


def test_blank_images_are_no_copies_of_each_other():
    blank = np.full((40, 60, 3), 250, np.uint8)
    blank[3, 5] = 0
    assert look_of(blank) == ""
    assert find_copies({"a": "", "b": ""}, {"a": "train", "b": "val"}) is None


def test_what_says_that_it_was_made_of_another_image_is_its_copy():
    images = drawn(12)
    looks = {f"train-{n}": look_of(image) for n, image in enumerate(images)}
    looks |= {f"train-aug-image_{n}_11{n}": look_of(np.rot90(images[n])) for n in range(4)}
    split_of = {key: "test" if key.startswith("train-aug") else "train" for key in looks}
    copies = find_copies(looks, split_of)
    assert copies is not None and copies.group == r"(\d+)"
    assert set(copies.pairs) == {(f"train-{n}", f"train-aug-image_{n}_11{n}") for n in range(4)}
    assert find_copies(looks, dict.fromkeys(looks, "train")) is None
    plain = {key.replace("aug", "august"): look for key, look in looks.items()}  # a month
    assert find_copies(plain, {key: "test" if "august" in key else "train" for key in plain}) is None


def test_crowds_end_in_time():
    look = look_of(drawn(1)[0])
    looks = {f"k{n}": look for n in range(3000)}
    copies = find_copies(looks, {key: "train" if n % 2 else "test" for n, key in enumerate(looks)})
    assert copies is not None and 1000 < len(copies.pairs) < 10**6


@pytest.mark.parametrize(
    ("pairs", "others", "group"),
    [
        ([("train-0", "train-aug-image_0_111"), ("train-1", "train-aug-image_1_5")], ["train-2"], r"(\d+)"),
        ([("scan_a1_01", "scan_a1_02"), ("scan_b2_01", "scan_b2_07")], ["scan_c3_01"], r"^(.*\d.*?)[-_](?=[^-_]*$)"),
        ([("cat_jpg-rf-a9f", "cat_jpg-rf-77e")], ["dog_jpg-rf-1", "cow_jpg-rf-2"], r"^(.*?)[-_]rf[-_]"),
        ([("anna-x", "anna-y")], ["bob-x", "carl-x"], r"^([^-_]+)"),
        ([("a1", "b2")], ["c3", "d4"], None),
    ],
)  # fmt: skip
def test_the_group_is_what_copies_share(pairs, others, group):
    assert group_for(pairs, [*others, *(key for pair in pairs for key in pair)]) == group
