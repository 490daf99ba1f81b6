import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import petseg.inference.predict as module
from petseg.classes import OXFORD, ClassTable
from petseg.config import TrainConfig
from petseg.data.decode.pictures import MAX_PIXELS
from petseg.data.decode.resize import resize_image
from petseg.errors import PetsegError
from petseg.inference.predict import Segmenter, enlarge, overlay, pictures_in, predict, read_photo
from petseg.inference.trained import load_trained, network_for
from petseg.training.checkpoint import save_checkpoint

CPU = torch.device("cpu")


def saved_run(folder: Path, classes: ClassTable = OXFORD, decode_policy: str = "fancy-upsampling", **options) -> Path:
    config = TrainConfig(**{"size": "32x48", "width": 4, "depth": 3, **options})
    torch.manual_seed(3)
    weights = network_for(config, classes).state_dict()
    save_checkpoint(
        folder / "best.pt",
        {
            "config": config.to_dict(), "classes": classes.to_dict(), "mean": [0.4, 0.45, 0.5], "std": [0.2, 0.25, 0.3],
            "decode_policy": decode_policy, "data_digest": "", "model": weights, "ema": None, "epoch": 1,
        },
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return load_trained(saved_run(tmp_path_factory.mktemp("run")), CPU)


def picture(height=60, width=90, seed=0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_writes_codes_and_an_overlay_at_the_photos_own_size(trained, tmp_path):
    photo, out = save(tmp_path / "my cat (1).final.jpg", picture(301, 203)), tmp_path / "new" / "out"
    ticks = []
    (result,) = predict(trained, [photo], out, device=CPU, progress=ticks.append)
    assert listing(out) == ["my cat (1).final.png", "my cat (1).final_overlay.jpg"]
    assert (result.mask, result.overlay) == (out / "my cat (1).final.png", out / "my cat (1).final_overlay.jpg")
    with Image.open(result.mask) as mask, Image.open(result.overlay) as over:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (203, 301))
        assert (over.format, over.mode, over.size) == ("JPEG", "RGB", (203, 301))
        codes = np.array(mask)
        assert (np.array(mask.convert("RGB")) == np.array(OXFORD.colours, np.uint8)[codes - 1]).all()
    expected = OXFORD.to_codes(Segmenter(trained, CPU).segment(read_photo(photo)))
    assert (codes == expected).all()
    assert set(np.unique(codes)) <= {1, 2, 3} and len(np.unique(codes)) > 1
    assert result.shares["pet"] == pytest.approx((codes == 1).mean())
    assert ticks == [1]


@pytest.mark.parametrize("options", [{}, {"arch": "seed"}, {"normalise": False, "channels_last": False}])
def test_segment_is_squash_network_enlarge_argmax(tmp_path, options):
    trained = load_trained(saved_run(tmp_path, **options), CPU)
    pixels = picture(121, 77)
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
    band=st.integers(1, 500),
    seed=st.integers(0, 99),
)
def test_bands_make_up_the_whole_enlargement_and_stay_small(shape, size, band, seed):
    p = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    bands = list(enlarge(p, *size, band_pixels=band))
    whole = F.interpolate(p[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.cat([b for _, b in bands], dim=1), whole, atol=2e-6, rtol=0)
    assert [i for rows, _ in bands for i in range(rows.start, rows.stop)] == list(range(size[0]))
    assert all(b.numel() <= max(band, shape[0] * size[1]) for _, b in bands)


FORMATS = {
    "rgb.jpg": Image.fromarray,
    "grey.jpg": lambda a: Image.fromarray(a).convert("L"),
    "cmyk.jpg": lambda a: Image.fromarray(a).convert("CMYK"),
    "alpha.png": lambda a: Image.fromarray(np.dstack([a, a[..., :1]])),
    "palette.gif": lambda a: Image.fromarray(a).quantize(16),
    "bilevel.png": lambda a: Image.fromarray(a).convert("1"),
    "deep.png": lambda a: Image.fromarray(a[..., 0].astype(np.uint16) * 257),
    "photo.webp": Image.fromarray,
    "float.tiff": lambda a: Image.fromarray(a[..., 0].astype(np.float32)),
    "photo.bmp": Image.fromarray,
}


@pytest.mark.parametrize("name", FORMATS)
def test_any_format_becomes_rgb(trained, tmp_path, name):
    FORMATS[name](picture()).save(tmp_path / name)
    pixels = read_photo(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == (60, 90, 3)
    (result,) = predict(trained, [tmp_path / name], tmp_path / "out", device=CPU)
    assert Image.open(result.mask).size == (90, 60)


def test_deep_grey_keeps_its_tones_and_transparency_lies_on_white(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert (read_photo(save(tmp_path / "deep.png", ramp * 257))[..., 1] == ramp).all()
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    clear[:2, :, 3] = 255
    over = read_photo(save(tmp_path / "clear.png", clear))
    assert (over[:2] == 0).all() and (over[2:] == 255).all()


@pytest.mark.parametrize("orientation", range(9))
def test_photos_are_turned_upright(trained, tmp_path, orientation):
    upright = picture(40, 70)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that undoes what a viewer does
    stored = Image.fromarray(upright)
    if orientation in turn:
        stored = stored.transpose(Image.Transpose(turn[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "cat.png", exif=exif)
    assert (read_photo(tmp_path / "cat.png") == upright).all()
    (result,) = predict(trained, [tmp_path / "cat.png"], tmp_path / "out", device=CPU)
    assert Image.open(result.mask).size == Image.open(result.overlay).size == (70, 40)


def test_unreadable_photos_keep_no_other_waiting_and_are_named_at_the_end(trained, tmp_path):
    good = [save(tmp_path / f"good{i}.jpg", picture(seed=i)) for i in range(2)]
    whole = save(tmp_path / "cut.jpg", picture(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    bad = [tmp_path / "cut.jpg", tmp_path / "text.jpg", tmp_path / "gone.jpg"]
    ticks = []
    with pytest.raises(PetsegError) as caught:
        predict(trained, [bad[0], good[0], *bad[1:], good[1]], tmp_path / "out", device=CPU, progress=ticks.append)
    message = str(caught.value)
    assert message.startswith("3 of 5 pictures could not be read: ") and "\n" not in message
    assert all(str(path) in message for path in bad) and "the other 2 are in" in message
    assert listing(tmp_path / "out") == ["good0.png", "good0_overlay.jpg", "good1.png", "good1_overlay.jpg"]
    assert sum(ticks) == 5


def test_a_photo_that_ends_early_is_refused_unless_asked_for(trained, tmp_path):
    whole = save(tmp_path / "whole.jpg", picture(200, 200)).read_bytes()
    ends = {
        "cut.jpg": whole[: len(whole) // 2],
        "closed.jpg": whole[: len(whole) // 2] + b"\xff\xd9",  # an end marker hides it from Pillow
    }
    for name, data in ends.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PetsegError, match=rf"{name} is damaged .*; --allow-damaged takes what is damaged\."):
            predict(trained, [tmp_path / name], tmp_path / "out", device=CPU)
        (result,) = predict(trained, [tmp_path / name], tmp_path / "out", device=CPU, allow_damaged=True)
        assert Image.open(result.mask).size == (200, 200)


def test_a_long_list_of_failures_is_cut(trained, tmp_path):
    with pytest.raises(PetsegError, match=r"^9 of 9 .*and 4 more\.$"):
        predict(trained, [tmp_path / f"{i}.jpg" for i in range(9)], tmp_path / "out", device=CPU)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size; its pixels are not even there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("size", [(20_000, 10_000), (13_378, 13_378), (65_501, 10)])
def test_a_bomb_is_refused_by_its_header(tmp_path, size, monkeypatch):
    monkeypatch.setattr(module, "to_rgb", lambda opened: pytest.fail("decoded"))
    with pytest.raises(PetsegError, match="too large"):
        read_photo(bomb(tmp_path / "bomb.png", *size))


def test_the_limit_itself_is_decoded(tmp_path, recwarn):
    assert 13_377 * 13_377 <= MAX_PIXELS < 13_378 * 13_378
    with pytest.raises(PetsegError) as caught:  # for want of pixels, not for its size
        read_photo(bomb(tmp_path / "big.png", 65_500, 2))
    assert "too large" not in str(caught.value) and not recwarn.list


@pytest.mark.parametrize("names", [("cat.jpg", "cat.png"), ("a/cat.jpg", "b/cat.jpg"), ("Cat.jpg", "cat.webp")])
def test_colliding_names_are_refused_before_anything_is_written(trained, tmp_path, names):
    photos = [save(tmp_path / name, picture()) for name in ("first.jpg", *names)]
    with pytest.raises(PetsegError, match="would both be written to") as caught:
        predict(trained, photos, tmp_path / "out", device=CPU)
    assert all(name in str(caught.value) for name in names)
    assert not (tmp_path / "out").exists()


def test_a_photo_is_never_replaced_by_a_result(trained, tmp_path):
    photo = save(tmp_path / "cat.png", picture())
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "link"):
        with pytest.raises(PetsegError, match="would replace the picture"):
            predict(trained, [photo], out, device=CPU)
    other = save(tmp_path / "cat_overlay.jpg", picture())
    save(tmp_path / "sub" / "cat.jpg", picture())
    with pytest.raises(PetsegError, match="would replace the picture"):
        predict(trained, [tmp_path / "sub" / "cat.jpg", other], tmp_path, device=CPU)
    assert listing(tmp_path) == ["cat.png", "cat_overlay.jpg", "link", "sub"]


def test_earlier_results_are_replaced_and_links_are_not_followed(trained, tmp_path):
    photo, out, outside = save(tmp_path / "cat.jpg", picture()), tmp_path / "out", tmp_path / "precious.txt"
    outside.write_text("precious")
    out.mkdir()
    (out / "cat.png").symlink_to(outside)
    (out / "cat_overlay.jpg").write_text("old")
    (out / "other").write_text("kept")
    predict(trained, [photo], out, device=CPU)
    assert outside.read_text() == "precious" and not (out / "cat.png").is_symlink()
    assert Image.open(out / "cat_overlay.jpg").size == (90, 60)
    assert listing(out) == ["cat.png", "cat_overlay.jpg", "other"]


def test_an_out_that_cannot_be_written_ends_it_at_once(trained, tmp_path):
    photo = save(tmp_path / "cat.jpg", picture())
    with pytest.raises(PetsegError, match=r"--out: .* is a file"):
        predict(trained, [photo], photo, device=CPU)
    with pytest.raises(PetsegError, match=r"--out: .* cannot be made"):
        predict(trained, [photo], photo / "out", device=CPU)
    (tmp_path / "out" / "cat.png" / "in the way").mkdir(parents=True)
    with pytest.raises(PetsegError, match=r"--out: .*cat.png could not be written"):
        predict(trained, [photo], tmp_path / "out", device=CPU)


def test_a_folder_means_the_pictures_directly_in_it(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.jpg", "._a.png", "deeper/c.jpg"):
        save(tmp_path / "in" / name, picture(), format="PNG")
    (tmp_path / "in" / "notes.txt").write_text("x")
    a, b = tmp_path / "in" / "a.png", tmp_path / "in" / "b.JPG"
    assert pictures_in([tmp_path / "in"]) == [a, b]
    assert pictures_in([b, tmp_path / "in", b, tmp_path / "gone.jpg"]) == [b, a, tmp_path / "gone.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PetsegError, match="no picture directly in it"):
        pictures_in([a, tmp_path / "empty"])
    with pytest.raises(PetsegError, match="no picture was named"):
        pictures_in([])


def test_overlay_tints_marks_the_classes_limits_and_shows_no_seams(monkeypatch):
    pixels = np.full((80, 60, 3), 100, dtype=np.uint8)
    mask = np.zeros((80, 60), dtype=np.uint8)
    mask[20:50, 15:40] = 1
    whole = overlay(pixels, mask, OXFORD)
    assert (pixels == 100).all()
    tint = 0.55 * 100 + 0.45 * OXFORD.palette().astype(float)
    np.testing.assert_allclose(whole[5, 5], tint[0], atol=1)
    np.testing.assert_allclose(whole[30, 30], tint[1], atol=1)
    assert whole[30, 14].min() > 200 and whole[19, 30].min() > 200
    for rows in (1, 7, 20, 49):
        monkeypatch.setattr(module, "_BAND_PIXELS", 3 * 60 * rows)
        assert (overlay(pixels, mask, OXFORD) == whole).all()


def test_pictures_of_one_pixel(trained, tmp_path):
    (result,) = predict(trained, [save(tmp_path / "dot.png", picture(1, 1))], tmp_path / "out", device=CPU)
    assert Image.open(result.mask).size == (1, 1)


def test_other_classes_give_their_own_codes(tmp_path):
    road = ClassTable(codes=(7, 200), names=("a", "b"), colours=((0, 0, 0), (9, 9, 9)))
    trained = load_trained(saved_run(tmp_path, road), CPU)
    (result,) = predict(trained, [save(tmp_path / "x.jpg", picture())], tmp_path / "out", device=CPU)
    assert set(np.unique(np.array(Image.open(result.mask)))) <= {7, 200}


def test_an_unknown_decode_policy_is_refused(tmp_path):
    trained = load_trained(saved_run(tmp_path, decode_policy="by-hand"), CPU)
    with pytest.raises(PetsegError, match="by-hand"):
        Segmenter(trained, CPU)


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu(tmp_path):
    run = saved_run(tmp_path)
    pixels = picture(200, 300)
    cpu = Segmenter(load_trained(run, CPU), CPU).segment(pixels)
    cuda = torch.device("cuda", 0)
    assert (Segmenter(load_trained(run, cuda), cuda).segment(pixels) == cpu).mean() > 0.99
