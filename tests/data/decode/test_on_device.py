"""The GPU's resize, here on the CPU, beside the one that everything is held to."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from petseg.data.decode import on_device
from petseg.data.decode.boxes import Box, Fit, Framing, drawn, frame_image, padded, whole
from petseg.data.decode.on_device import frame_on_device
from petseg.device import resolve_device

DEVICE = resolve_device("auto")
SIDES = st.integers(1, 150)


def framed(images, boxes, size) -> np.ndarray:
    return np.stack([frame_image(image, box, size) for image, box in zip(images, boxes, strict=True)]).astype(int)


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5), size=st.tuples(SIDES, SIDES),
    kind=st.sampled_from(["squash", "pad", "crop"]), seed=st.integers(0, 9),
)  # fmt: skip
def test_boxes_of_many_images_are_framed_as_one_by_one(shapes, size, kind, seed):
    rng = np.random.default_rng(seed)
    values = np.array([0, 255] if seed % 2 else range(256), np.uint8)
    images = [rng.choice(values, (*shape, 3)) for shape in shapes]
    framing = Framing(size, Fit(kind="crop", scale=(0.3, 3.0)), seed)
    boxes = [
        {
            "squash": whole,
            "pad": lambda h, w: padded(h, w, size),
            "crop": lambda h, w: drawn(framing, 7, 0, h, w),
        }[kind](*shape)
        for shape in shapes
    ]
    found = frame_on_device([torch.from_numpy(image).to(DEVICE) for image in images], boxes, size)
    assert found.dtype == torch.uint8 and found.shape == (len(images), *size, 3) and found.is_contiguous()
    assert np.abs(found.cpu().numpy() - framed(images, boxes, size)).max() <= 1


@pytest.mark.parametrize("at_once", [1, 12 * 50 * 60 * 2, 1 << 30])
def test_large_images_are_resized_some_at_a_time(monkeypatch, at_once):
    monkeypatch.setattr(on_device, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + 2 * n, 60 - 3 * n, 3), dtype=np.uint8) for n in range(6)]
    boxes = [whole(*image.shape[:2]) for image in images]
    found = frame_on_device([torch.from_numpy(image) for image in images], boxes, (32, 32))
    assert np.abs(found.numpy() - framed(images, boxes, (32, 32))).max() <= 1


def test_an_image_of_the_results_size_stays_as_it_is_and_a_long_one_needs_no_canvas():
    rng = np.random.default_rng(1)
    same, long = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((48, 64, 3), (3, 20_000, 3)))
    boxes = [whole(48, 64), padded(3, 20_000, (48, 64))]
    assert boxes[1] == Box(-7499, 0, 15_000, 20_000)
    found = frame_on_device([torch.from_numpy(same), torch.from_numpy(long)], boxes, (48, 64)).numpy()
    assert np.array_equal(found[0], same)
    assert np.abs(found[1].astype(int) - framed([long], boxes[1:], (48, 64))[0]).max() <= 1
