"""Small images: what they show, where ignored and wrong pixels go, and which classes fit."""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from petseg.classes import IGNORE_INDEX
from petseg.report.gallery import (
    ERROR_COLOUR,
    Panel,
    gallery_rows,
    mark,
    overlay,
    probability_colours,
    tile_side,
)
from petseg.report.looks import class_looks


def panel_of(truth, predicted, classes, *, key="key", iou=0.5):
    truth, predicted = np.asarray(truth, dtype=np.int64), np.asarray(predicted)
    probabilities = np.full((classes, *truth.shape), 0.05, dtype=np.float32)
    np.put_along_axis(probabilities, predicted[None], 0.9, axis=0)
    image = np.full((*truth.shape, 3), 128, dtype=np.uint8)
    return Panel(key=key, image=image, truth=truth, probabilities=probabilities, iou=iou)


def looks_of(classes):
    return class_looks(None, [f"c{i}" for i in range(classes)], classes)


def pixels(tile):
    head, data = tile.source.split(",", 1)
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


@pytest.mark.parametrize("classes", [2, 3, 5, 20])
@pytest.mark.parametrize("shape", [(100, 100), (97, 133), (1, 7), (500, 40)])
def test_rows_of_any_shape_and_number_of_classes(classes, shape):
    truth = np.arange(shape[0] * shape[1]).reshape(shape) % classes
    (row,) = gallery_rows([panel_of(truth, truth, classes)], looks_of(classes))
    assert len(row.tiles) == 3 + min(classes, 3)
    assert max(row.width, row.height) == tile_side(1)
    assert row.width / row.height == pytest.approx(shape[1] / shape[0], rel=0.2)
    assert row.wrong == 0
    for tile in row.tiles:
        assert pixels(tile).shape == (row.height, row.width, 3)
        assert "key" in tile.alt


def test_the_classes_that_cover_the_most_are_shown_in_their_order():
    truth = np.zeros((10, 10), dtype=np.int64)
    truth[:4], truth[4:7], truth[7:9] = 9, 2, 5
    (row,) = gallery_rows([panel_of(truth, truth, 12)], looks_of(12))
    assert [tile.label for tile in row.tiles[3:]] == ["P(c2)", "P(c5)", "P(c9)"]


def test_the_probability_image_shows_the_probability():
    truth = np.zeros((20, 20), dtype=np.int64)
    truth[:, 10:] = 1
    (row,) = gallery_rows([panel_of(truth, truth, 2)], looks_of(2))
    table = probability_colours().astype(int)
    image = pixels(row.tiles[3])
    middle = image.shape[0] // 2
    assert np.abs(image[middle, 60] - table[round(0.9 * 255)]).max() < 12
    assert np.abs(image[middle, -60] - table[round(0.05 * 255)]).max() < 12


def test_the_share_of_wrong_pixels_leaves_out_the_ignored():
    truth = np.zeros((10, 10), dtype=np.int64)
    truth[:5] = IGNORE_INDEX
    predicted = np.zeros((10, 10), dtype=np.int64)
    predicted[:6] = 1
    (row,) = gallery_rows([panel_of(truth, predicted, 2)], looks_of(2))
    assert row.wrong == pytest.approx(20)


def test_an_image_where_nothing_counts_has_no_share():
    truth = np.full((8, 8), IGNORE_INDEX)
    (row,) = gallery_rows([panel_of(truth, np.zeros((8, 8), dtype=np.int64), 2, iou=math.nan)], looks_of(2))
    assert row.wrong is None


def test_probabilities_that_are_not_numbers_are_drawn_as_none():
    truth = np.zeros((8, 8), dtype=np.int64)
    panel = panel_of(truth, truth, 2)
    panel.probabilities[:] = np.nan
    (row,) = gallery_rows([panel], looks_of(2))
    assert np.abs(pixels(row.tiles[3]) - probability_colours()[0].astype(int)).max() < 12


def test_overlay_tints_by_class_and_leaves_the_ignored_grey():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    indices = np.array([[0, 1, 255, 0]] * 4)
    tinted = overlay(image, indices, np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8)).astype(int)
    assert (tinted[:, 0, 0] > tinted[:, 0, 2]).all()
    assert (tinted[:, 1, 2] > tinted[:, 1, 0]).all()
    assert (tinted[:, 2] == tinted[:, 2, :1]).all()


def test_marks_lie_on_wrong_pixels_only_and_let_the_rest_show():
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    wrong = np.zeros((40, 40), dtype=bool)
    wrong[10:30, 10:30] = True
    marked = (mark(image, wrong) == ERROR_COLOUR).all(-1)
    assert not marked[~wrong].any()
    assert 0.3 < marked[wrong].mean() < 0.6
    assert not image.any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": np.zeros((4, 4, 3))}, "image is u8"),
        ({"image": np.zeros((4, 4), dtype=np.uint8)}, "image is u8"),
        ({"image": np.zeros((0, 4, 3), dtype=np.uint8)}, "image is u8"),
        ({"truth": np.zeros((4, 5), dtype=np.int64)}, "truth is"),
        ({"truth": np.full((4, 4), 2)}, "truth holds 2"),
        ({"truth": np.full((4, 4), -1)}, "truth holds -1"),
        ({"probabilities": np.zeros((4, 4, 2), dtype=np.float32)}, "probabilities are"),
        ({"probabilities": np.zeros((1, 4, 4), dtype=np.float32)}, "probabilities are"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(change, says):
    good = {
        "key": "Abyssinian_1",
        "image": np.zeros((4, 4, 3), dtype=np.uint8),
        "truth": np.zeros((4, 4), dtype=np.int64),
        "probabilities": np.zeros((2, 4, 4), dtype=np.float32),
        "iou": 0.5,
    }
    Panel(**good)
    with pytest.raises(ValueError, match=f"Abyssinian_1.*{says}"):
        Panel(**(good | change))


def test_more_classes_than_names_are_refused():
    truth = np.zeros((4, 4), dtype=np.int64)
    with pytest.raises(ValueError, match="3 classes"):
        gallery_rows([panel_of(truth, truth, 3)], looks_of(2))
