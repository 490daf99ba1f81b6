import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import petseg.inference.segment as module
from petseg import Manifest
from petseg.data.decode.images import decode_image, policy_of
from petseg.data.decode.resize import resize_image
from petseg.data.shards.reader import ShardReader
from petseg.device import World
from petseg.errors import PetsegError
from petseg.inference.segment import Segmenter, enlarge, likeliest
from petseg.inference.trained import load_trained
from petseg.inference.whole_images import WholeImages

CPU = torch.device("cpu")


@pytest.mark.parametrize("options", [{}, {"arch": "seed"}, {"normalise": False, "channels_last": False}])
def test_segment_is_squash_network_enlarge_argmax(saved_run, image, tmp_path, options):
    trained = load_trained(saved_run(tmp_path, **options), CPU)
    pixels = image(121, 77)
    small = resize_image(pixels, 32, 48)
    x = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
    if options.get("normalise", True):
        x = (x - trained.transform.mean.view(1, 3, 1, 1)) / trained.transform.std.view(1, 3, 1, 1)
    with torch.no_grad():
        probabilities = trained.network.probabilities(trained.network(x))
    large = F.interpolate(probabilities, size=(121, 77), mode="bilinear", align_corners=False)[0]
    top = large.topk(2, dim=0).values
    clear = (top[0] - top[1] > 1e-5).numpy()
    mask = Segmenter(trained, CPU).segment(pixels)
    # Untrained, the notebook's last ReLU leaves many pixels at the same value in every class.
    assert mask.dtype == np.uint8 and clear.mean() > (0.4 if options.get("arch") == "seed" else 0.95)
    assert (mask == large.argmax(0).numpy())[clear].all()


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    step=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_rows_make_up_the_whole_enlargement(shape, size, step, seed):
    p = np.random.default_rng(seed).random(shape, np.float32)
    rows = [slice(first, min(first + step, size[0])) for first in range(0, size[0], step)]
    found = np.concatenate([enlarge(p, *size, part) for part in rows], axis=1)
    whole = F.interpolate(torch.from_numpy(p)[None], size=size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(found, whole.numpy(), atol=5e-6, rtol=0)


def test_the_widest_image_is_enlarged_as_well():
    p = np.random.default_rng(1).random((3, 8, 96), np.float32)
    whole = F.interpolate(torch.from_numpy(p)[None], size=(5, 65_500), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(enlarge(p, 5, 65_500, slice(0, 5)), whole.numpy(), atol=2e-5, rtol=0)


@given(st.integers(1, 5), st.integers(0, 99))
def test_likeliest_is_argmax(classes, seed):
    p = np.random.default_rng(seed).integers(0, 4, (classes, 7, 5)).astype(np.float32)  # with ties
    assert (likeliest(p) == p.argmax(0)).all()


@pytest.mark.parametrize("options", [{}, {"tile": 40}, {"tile": 40, "overlap": 0.6, "tta": True}])
@pytest.mark.parametrize("values", [1, 3 * 77 * 10, 3 * 77 * 64])
def test_bands_are_whole_rows_in_order_and_do_not_change_the_result(segmenter, image, monkeypatch, options, values):
    pixels = image(121, 77)
    using = Segmenter(segmenter._trained, CPU, **options)
    whole = using.probabilities(pixels)
    monkeypatch.setattr(module, "BAND_VALUES", values)
    bands = list(using.bands(pixels))
    assert [i for rows, _ in bands for i in range(rows.start, rows.stop)] == list(range(121))
    assert all(band.size <= max(values, 3 * 77) for _, band in bands)
    np.testing.assert_allclose(np.concatenate([band for _, band in bands], axis=1), whole, atol=1e-6)


@settings(deadline=None)
@given(length=st.integers(1, 300), tile=st.integers(1, 350), overlap=st.floats(0, 0.9), clipped=st.booleans())
def test_tiles_cover_an_axis_evenly_and_their_weights_add_up_to_one(length, tile, overlap, clipped):
    spans = module._spans(length, tile, overlap, clipped=clipped)
    total = np.zeros(length)
    for span in spans:
        assert span.length == (min(tile, length) if clipped else tile)
        assert span.start <= span.first < span.last <= span.start + span.length
        total[span.first : span.last] += span.weights
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert spans[0].first == 0 and spans[-1].last == length
    if tile >= length:
        (only,) = spans
        assert abs(-only.start - (only.start + only.length - length)) <= 1, "the image is in its middle"
    shared = [before.last - after.first for before, after in itertools.pairwise(spans)]
    assert all(pixels >= tile * overlap - 1 for pixels in shared)


def test_a_tile_as_large_as_the_image_is_the_whole_image(segmenter, image):
    pixels = image(64, 96)  # the network's aspect
    whole = segmenter.probabilities(pixels)
    for tile in (64, 1000):
        assert (Segmenter(segmenter._trained, CPU, tile=tile).probabilities(pixels) == whole).all()


def test_tiles_show_the_network_what_squashing_hides(segmenter, image):
    tile = Segmenter(segmenter._trained, CPU, tile=64, overlap=0.25)
    pixels = image(200, 300)
    found = tile.probabilities(pixels)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    # The first tile's middle, where no neighbour reaches: there a tile is an image of its own.
    corner = segmenter.probabilities(pixels[:64, :96])
    np.testing.assert_allclose(found[:, :10, :10], corner[:, :10, :10], atol=1e-5)
    assert np.abs(found - segmenter.probabilities(pixels)).max() > 0.005


def test_tta_is_the_mean_of_an_image_and_its_mirror(segmenter, image):
    pixels = image(64, 96)
    expected = (segmenter.probabilities(pixels) + segmenter.probabilities(pixels[:, ::-1].copy())[..., ::-1]) / 2
    np.testing.assert_allclose(Segmenter(segmenter._trained, CPU, tta=True).probabilities(pixels), expected, atol=1e-5)


def test_mixed_precision_is_used_where_the_run_had_it(saved_run, image, tmp_path, monkeypatch):
    monkeypatch.setattr("petseg.device.cpu_has_bf16", lambda: True)
    trained = load_trained(saved_run(tmp_path, amp="bf16"), CPU)
    pixels = image(64, 96)
    mixed, full = (Segmenter(trained, CPU, amp=amp).probabilities(pixels) for amp in (None, "off"))
    assert 0 < np.abs(mixed - full).max() < 0.05
    assert (Segmenter(load_trained(saved_run(tmp_path), CPU), CPU).probabilities(pixels) == full).all()


@pytest.mark.parametrize("options", [{"tile": 15}, {"tile": -1}, {"overlap": 0.95}, {"overlap": -0.1}, {"amp": "fp8"}])
def test_options_out_of_range_are_refused(segmenter, options):
    with pytest.raises(PetsegError, match=f"--{next(iter(options))}: "):
        Segmenter(segmenter._trained, CPU, **options)


def test_an_unknown_decode_policy_is_refused(saved_run, tmp_path):
    trained = load_trained(saved_run(tmp_path, decode_policy="by-hand"), CPU)
    with pytest.raises(PetsegError, match="by-hand"):
        Segmenter(trained, CPU)


def test_whole_images_and_photos_are_decoded_by_the_policy(saved_run, packed, tmp_path):
    manifest = Manifest.load(packed)
    reader = ShardReader(packed, manifest, "train", verify=False)
    jpeg = bytes(reader.read(0)[0])
    reader.close()
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    decoded = {chroma: decode_image(jpeg, chroma) for chroma in ("fancy", "simple")}
    assert (decoded["fancy"] != decoded["simple"]).any()
    for chroma, pixels in decoded.items():
        images = WholeImages(packed, manifest, "train", World(rank=0, size=1, device=CPU), chroma=chroma)
        (_, found, _), *_ = images.decoded(np.array([0]))
        images.close()
        assert np.array_equal(found, pixels)
        (tmp_path / chroma).mkdir()
        run = saved_run(tmp_path / chroma, decode_policy=policy_of(chroma), chroma=chroma)
        segmenter = Segmenter(load_trained(run, CPU), CPU)
        by_file = segmenter.probabilities(tmp_path / "photo.jpg")
        assert np.array_equal(by_file, segmenter.probabilities(pixels))
        assert not np.array_equal(by_file, segmenter.probabilities(Image.fromarray(255 - pixels)))


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu(saved_run, image, tmp_path):
    run = saved_run(tmp_path)
    pixels = image(200, 300)
    cpu = Segmenter(load_trained(run, CPU), CPU).segment(pixels)
    cuda = torch.device("cuda", 0)
    assert (Segmenter(load_trained(run, cuda), cuda).segment(pixels) == cpu).mean() > 0.99
