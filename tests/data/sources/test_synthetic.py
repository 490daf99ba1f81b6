"""Drawn pets: the same bytes everywhere, exact trimaps, and no way to guess them by colour."""

import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import cv2
import numpy as np
import pytest

from petseg.classes import OXFORD
from petseg.data.sources import Pair
from petseg.data.sources.synthetic import SyntheticSource
from petseg.data.sources.synthetic.canvas import Canvas
from petseg.data.sources.synthetic.scene import BORDER, draw
from petseg.data.sources.synthetic.shapes import box, ellipse
from petseg.data.sources.synthetic.textures import rgb
from petseg.errors import PetsegError

SAMPLES = 240
SIDE = 96


def decode(files: tuple[bytes, bytes]) -> tuple[np.ndarray, np.ndarray]:
    image, mask = (cv2.imdecode(np.frombuffer(f, np.uint8), cv2.IMREAD_UNCHANGED) for f in files)
    return image[..., ::-1], mask


def by_number(source: SyntheticSource) -> list[Pair]:
    return sorted(source.listing().pairs, key=lambda pair: pair.key[4:])


def mean_iou(truth: np.ndarray, guess: np.ndarray) -> float:
    """Over the three codes, aggregated over all pixels."""
    ious = [((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum() for c in OXFORD.codes]
    return float(np.mean(ious))


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, np.ndarray]]:
    source = SyntheticSource(SAMPLES, seed=11)
    return [decode(source.read(pair)) for pair in by_number(source)]


@pytest.fixture(scope="module")
def squashed(drawn) -> tuple[np.ndarray, np.ndarray]:
    images = np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image, _ in drawn])
    return images, np.stack([cv2.resize(m, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST_EXACT) for _, m in drawn])


# --- the source's contract


def test_lists_sorted_unique_drawn_pairs_without_a_split():
    source = SyntheticSource(25)
    listing = source.listing()
    keys = [pair.key for pair in listing.pairs]
    assert len(keys) == 25
    assert keys == sorted(set(keys))
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)
    assert {(pair.size, pair.split) for pair in listing.pairs} == {(0, None)}
    assert (listing.rejected, listing.unlisted, listing.ignored) == ((), (), 0)
    assert sum(key.startswith("Cat_") for key in keys) == 13
    assert source.name == "synthetic:25"
    assert SyntheticSource().name == "synthetic"
    assert source.classes is OXFORD


def test_a_sample_depends_on_seed_and_number_alone():
    few, many = SyntheticSource(8, seed=3), SyntheticSource(500, seed=3)
    pairs = by_number(few)
    first = [few.read(pair) for pair in pairs]
    assert [many.read(pair) for pair in reversed(pairs)] == first[::-1]
    other = [SyntheticSource(8, seed=4).read(pair) for pair in pairs]
    assert all(a[0] != b[0] for a, b in zip(first, other, strict=True))
    assert len({image for image, _ in first}) == 8


def test_another_process_draws_the_same_bytes():
    source = SyntheticSource(6, seed=5)
    pairs = by_number(source)
    assert pickle.loads(pickle.dumps(source)) == source
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(source.read, pairs[::-1])) == [source.read(pair) for pair in pairs[::-1]]


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_any_whole_number_is_a_seed(seed: int):
    source = SyntheticSource(1, seed=seed)
    assert source.read(source.listing().pairs[0])


def test_files_are_a_colour_jpeg_and_a_grey_png_of_one_size_within_the_sides():
    source = SyntheticSource(12, min_side=100, max_side=120)
    shapes = set()
    for pair in source.listing().pairs:
        image, mask = source.read(pair)
        assert image.startswith(b"\xff\xd8")
        assert mask.startswith(b"\x89PNG")
        assert mask[24:26] == bytes([8, 0]), "8 bits, grey"
        pixels, codes = decode((image, mask))
        assert pixels.shape == (*codes.shape, 3)
        assert 100 <= min(codes.shape) <= max(codes.shape) <= 120
        shapes.add(codes.shape)
    assert any(h > w for h, w in shapes)
    assert any(h < w for h, w in shapes)


@pytest.mark.parametrize("options", [{"n": 0}, {"n": -3}, {"min_side": 16}, {"min_side": 300, "max_side": 200}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]):
    with pytest.raises(PetsegError, match="synthetic"):
        SyntheticSource(**options)


@pytest.mark.parametrize("key", ["Cat_000001", "Dog_000009", "Cat_x", "abyssinian", "Cat_-00002"])
def test_a_foreign_key_is_refused_by_name(key: str):
    with pytest.raises(PetsegError, match=key):
        SyntheticSource(4).read(Pair(key=key, image="", mask="", size=0))


# --- trimaps


def test_what_stands_in_front_is_not_pet_and_marks_change_nothing():
    canvas = Canvas(np.zeros((3, 100, 120), np.float32), (0.0, -1.0))
    canvas.fill(ellipse(60, 50, 30), rgb(200, 100, 50), kind="pet")
    before = canvas.pet > 0.5
    canvas.fill(ellipse(60, 50, 10), rgb(0, 0, 0), kind="mark")
    canvas.stroke(box(0, 40, 119, 60), rgb(255, 255, 255), 2)
    np.testing.assert_array_equal(canvas.pet > 0.5, before)
    canvas.fill(box(60, -5, 130, 130), rgb(0, 0, 255))
    visible = canvas.pet > 0.5
    assert not visible[:, 62:].any()
    np.testing.assert_array_equal(visible[:, :58], before[:, :58])
    codes = canvas.trimap(0.02)
    assert set(codes[:, 66:].ravel()) == {2}, "beyond the border band all of the thing in front is background"
    assert codes[50, 59] == codes[50, 61] == 3, "the edge towards the thing in front is border too"


def test_the_border_is_a_band_of_its_thickness_on_both_sides_of_the_outline_and_not_along_the_frame():
    canvas = Canvas(np.zeros((3, 200, 200), np.float32), (0.0, -1.0))
    canvas.fill(box(-10, -10, 100, 210), rgb(90, 90, 90), kind="pet")
    row = canvas.trimap(0.02)[0].tolist()
    assert row == canvas.trimap(0.02)[199].tolist()
    assert row[:96] == [1] * 96
    assert set(row[98:103]) == {3}
    assert row[106:] == [2] * 94
    assert 7 <= row.count(3) <= 9


def test_codes_are_oxfords_and_border_parts_pet_from_background(drawn):
    for image, codes in drawn:
        assert set(np.unique(codes)) == {1, 2, 3}, "each image has a pet, a border and a background"
        r = max(1, round(BORDER * float(np.sqrt(codes.size))))
        near = cv2.dilate((codes == 1).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not (near & (codes == 2)).any(), "no pet pixel touches the background"
        silhouette = cv2.dilate(
            (codes == 1).astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (4 * r + 1, 4 * r + 1))
        )
        assert (silhouette[codes == 3] > 0).mean() > 0.4, "most border lies round a pet that shows"
        assert image.std() > 8


def test_every_image_shows_a_pet_worth_the_name(drawn):
    assert min(float((codes == 1).mean()) for _, codes in drawn) >= 0.06


def test_shares_are_about_those_of_real_pets(drawn):
    shares = np.mean([[(codes == c).mean() for c in OXFORD.codes] for _, codes in drawn], axis=0)
    assert 0.24 < shares[0] < 0.36
    assert 0.48 < shares[1] < 0.64
    assert 0.10 < shares[2] < 0.17


def test_poses_and_places_vary(drawn):
    centres = np.array([np.argwhere(codes == 1).mean(axis=0) / codes.shape for _, codes in drawn])
    assert (centres.std(axis=0) > 0.06).all()
    sizes = np.array([(codes == 1).mean() for _, codes in drawn])
    assert np.ptp(np.percentile(sizes, [10, 90])) > 0.15


# --- answers that must fail


def test_all_background_fails(squashed):
    _, codes = squashed
    assert mean_iou(codes, np.full_like(codes, 2)) < 0.30


@pytest.mark.parametrize("balanced", [False, True])
def test_guessing_by_colour_fails(squashed, balanced: bool):
    """The best answer that sees one pixel's colour: the commonest code of its cell in a 16x16x16 cube of colours."""
    images, codes = squashed
    cells = (images >> 4).astype(np.int64) @ np.array([256, 16, 1])
    cut = SAMPLES * 3 // 4
    counts = np.zeros((4096, 3))
    np.add.at(counts, (cells[:cut].ravel(), codes[:cut].ravel() - 1), 1)
    if balanced:
        counts /= counts.sum(axis=0)
    assert mean_iou(codes[cut:], counts.argmax(axis=1)[cells[cut:]] + 1) < 0.40


def test_guessing_by_place_fails(squashed):
    """The best answer that sees nothing but where a pixel is."""
    _, codes = squashed
    votes = np.stack([(codes == c).mean(axis=0) for c in OXFORD.codes])
    guess = np.broadcast_to(votes.argmax(axis=0) + 1, codes.shape)
    assert mean_iou(codes, guess) < 0.50


def test_pet_and_background_share_their_colours(drawn):
    """Their histograms overlap: no colour is the pet's own."""
    pet, rest = (
        np.concatenate([(image[codes == c] >> 5).astype(np.int64) @ np.array([64, 8, 1]) for image, codes in drawn])
        for c in (1, 2)
    )
    a, b = (np.bincount(v, minlength=512) / len(v) for v in (pet, rest))
    assert np.minimum(a, b).sum() > 0.55


def test_drawing_does_not_touch_numpys_global_randomness():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    draw(0, 0, cat=True, min_side=64, max_side=64)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
