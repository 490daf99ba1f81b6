from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import petseg.inference.predict as module
from petseg.classes import OXFORD, ClassTable
from petseg.data.decode.image_files import MAX_SIDE
from petseg.errors import PetsegError
from petseg.inference.inputs import read_image
from petseg.inference.predict import predict
from petseg.inference.segment import Segmenter
from petseg.inference.trained import load_trained

CPU = torch.device("cpu")


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_writes_codes_and_an_overlay_at_the_photos_own_size(segmenter, image, save, tmp_path):
    photo, out = save(tmp_path / "my cat (1).final.jpg", image(301, 203)), tmp_path / "new" / "out"
    ticks = []
    (result,) = predict(segmenter, [photo], out, progress=ticks.append)
    assert listing(out) == ["my cat (1).final.png", "my cat (1).final_overlay.jpg"]
    assert (result.mask, result.overlay) == (out / "my cat (1).final.png", out / "my cat (1).final_overlay.jpg")
    with Image.open(result.mask) as mask, Image.open(result.overlay) as over:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (203, 301))
        assert (over.format, over.mode, over.width) == ("JPEG", "RGB", 203)
        assert 301 < over.height < 400  # a legend below
        codes = np.array(mask)
        assert (np.array(mask.convert("RGB")) == np.array(OXFORD.colours, np.uint8)[codes - 1]).all()
    expected = OXFORD.to_codes(segmenter.segment(read_image(photo)))
    assert (codes == expected).all()
    assert set(np.unique(codes)) <= {1, 2, 3} and len(np.unique(codes)) > 1
    assert result.shares["pet"] == pytest.approx((codes == 1).mean())
    assert ticks == [1]


def test_unreadable_photos_keep_no_other_waiting_and_are_named_at_the_end(segmenter, image, save, tmp_path):
    good = [save(tmp_path / f"good{i}.jpg", image(seed=i)) for i in range(2)]
    whole = save(tmp_path / "cut.jpg", image(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    bad = [tmp_path / "cut.jpg", tmp_path / "text.jpg", tmp_path / "gone.jpg"]
    ticks = []
    with pytest.raises(PetsegError) as caught:
        predict(segmenter, [bad[0], good[0], *bad[1:], good[1]], tmp_path / "out", progress=ticks.append)
    message = str(caught.value)
    assert message.startswith("3 of 5 images could not be read: ") and "\n" not in message
    assert all(str(path) in message for path in bad) and "the other 2 are in" in message
    assert listing(tmp_path / "out") == ["good0.png", "good0_overlay.jpg", "good1.png", "good1_overlay.jpg"]
    assert sum(ticks) == 5


def test_a_photo_that_ends_early_is_refused_unless_asked_for(segmenter, image, save, tmp_path):
    whole = save(tmp_path / "whole.jpg", image(200, 200)).read_bytes()
    ends = {
        "cut.jpg": whole[: len(whole) // 2],
        "closed.jpg": whole[: len(whole) // 2] + b"\xff\xd9",  # an end marker hides it from Pillow
    }
    for name, data in ends.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PetsegError, match=rf"{name} is damaged .*; --allow-damaged takes what is damaged\."):
            predict(segmenter, [tmp_path / name], tmp_path / "out")
        (result,) = predict(segmenter, [tmp_path / name], tmp_path / "out", allow_damaged=True)
        assert Image.open(result.mask).size == (200, 200)


def test_a_long_list_of_failures_is_cut(segmenter, tmp_path):
    with pytest.raises(PetsegError, match=r"^9 of 9 .*and 4 more\.$"):
        predict(segmenter, [tmp_path / f"{i}.jpg" for i in range(9)], tmp_path / "out")


@pytest.mark.parametrize("names", [("cat.jpg", "cat.png"), ("a/cat.jpg", "b/cat.jpg"), ("Cat.jpg", "cat.webp")])
def test_colliding_names_are_refused_before_anything_is_written(segmenter, image, save, tmp_path, names):
    photos = [save(tmp_path / name, image()) for name in ("first.jpg", *names)]
    with pytest.raises(PetsegError, match="would both be written to") as caught:
        predict(segmenter, photos, tmp_path / "out")
    assert all(name in str(caught.value) for name in names)
    assert not (tmp_path / "out").exists()


def test_a_photo_is_never_replaced_by_a_result(segmenter, image, save, tmp_path):
    photo = save(tmp_path / "cat.png", image())
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "link"):
        with pytest.raises(PetsegError, match="would replace the image"):
            predict(segmenter, [photo], out)
    other = save(tmp_path / "cat_overlay.jpg", image())
    save(tmp_path / "sub" / "cat.jpg", image())
    with pytest.raises(PetsegError, match="would replace the image"):
        predict(segmenter, [tmp_path / "sub" / "cat.jpg", other], tmp_path)
    assert listing(tmp_path) == ["cat.png", "cat_overlay.jpg", "link", "sub"]


def test_earlier_results_are_replaced_and_links_are_not_followed(segmenter, image, save, tmp_path):
    photo, out, outside = save(tmp_path / "cat.jpg", image()), tmp_path / "out", tmp_path / "precious.txt"
    outside.write_text("precious")
    out.mkdir()
    (out / "cat.png").symlink_to(outside)
    (out / "cat_overlay.jpg").write_text("old")
    (out / "other").write_text("kept")
    predict(segmenter, [photo], out)
    assert outside.read_text() == "precious" and not (out / "cat.png").is_symlink()
    assert Image.open(out / "cat_overlay.jpg").format == "JPEG"
    assert listing(out) == ["cat.png", "cat_overlay.jpg", "other"]


def test_an_out_that_cannot_be_written_ends_it_at_once(segmenter, image, save, tmp_path):
    photo = save(tmp_path / "cat.jpg", image())
    with pytest.raises(PetsegError, match=r"--out: .* is a file"):
        predict(segmenter, [photo], photo)
    with pytest.raises(PetsegError, match=r"--out: .* cannot be made"):
        predict(segmenter, [photo], photo / "out")
    (tmp_path / "out" / "cat.png" / "in the way").mkdir(parents=True)
    with pytest.raises(PetsegError, match=r"--out: .*cat.png could not be written"):
        predict(segmenter, [photo], tmp_path / "out")


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_probabilities_are_written_a_file_a_class(segmenter, image, save, tmp_path, kind):
    photo = save(tmp_path / "cat.png", image(121, 77))
    (result,) = predict(segmenter, [photo], tmp_path / "out", probabilities=kind)
    assert [path.name for path in result.probabilities] == [f"cat_p{code}.{kind}" for code in (1, 2, 3)]
    expected = segmenter.probabilities(photo)
    for path, plane in zip(result.probabilities, expected, strict=True):
        if kind == "npy":
            assert (np.load(path) == plane).all()
        else:
            with Image.open(path) as stored:
                values = np.array(stored)
            assert values.dtype == np.uint16
            np.testing.assert_allclose(values / 65535, plane, atol=0.51 / 65535)
    assert len(listing(tmp_path / "out")) == 5


def test_probabilities_collide_with_other_photos_too(segmenter, image, save, tmp_path):
    photos = [save(tmp_path / name, image()) for name in ("cat.jpg", "cat_p2.jpg")]
    with pytest.raises(PetsegError, match=r"would both be written to .*cat_p2\.png"):
        predict(segmenter, photos, tmp_path / "out", probabilities="png")
    assert not (tmp_path / "out").exists()
    assert len(predict(segmenter, photos, tmp_path / "out")) == 2
    with pytest.raises(PetsegError, match="--probabilities"):
        predict(segmenter, photos, tmp_path / "out", probabilities="tiff")


def test_many_photos_come_back_in_order_and_as_if_each_were_alone(segmenter, image, save, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 4)
    before = torch.get_num_threads()
    photos = [save(tmp_path / "in" / f"{i:02}.png", image(30 + 7 * i, 90 - 3 * i, seed=i)) for i in range(20)]
    done = predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert [one.image for one in done] == photos
    for one in done:
        with Image.open(one.mask) as mask:
            assert (np.array(mask) == segmenter.predict(one.image)).mean() > 0.999
    assert torch.get_num_threads() == before


def test_ctrl_c_stops_the_images_that_have_not_begun(segmenter, image, save, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    photos = [save(tmp_path / f"{i:02}.png", image(seed=i)) for i in range(60)]

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(segmenter, photos, tmp_path / "out", progress=interrupt)
    written = listing(tmp_path / "out")
    assert len(written) < 100 and not [name for name in written if "partial" in name]


def test_the_legend_names_what_was_found_below_the_photo(segmenter, image, save, tmp_path):
    photo = save(tmp_path / "cat.png", image(200, 400))
    (result,) = predict(segmenter, [photo], tmp_path / "out")
    with Image.open(result.overlay) as over:
        below = np.array(over)[200:].astype(int)
    for name, colour in zip(OXFORD.names, OXFORD.colours, strict=True):
        shown = (np.abs(below - colour).max(-1) < 25).sum() > 50
        assert shown == (result.shares[name] > 0), name
    narrow = save(tmp_path / "narrow.png", image(200, 40))
    (result,) = predict(segmenter, [narrow], tmp_path / "out")
    assert Image.open(result.overlay).size == (40, 200)


def test_the_tallest_image_has_no_room_for_a_legend(segmenter, image, save, tmp_path):
    tall = save(tmp_path / "tall.png", image(MAX_SIDE, 100))
    (result,) = predict(segmenter, [tall], tmp_path / "out")
    assert Image.open(result.overlay).size == (100, MAX_SIDE)


def test_images_of_one_pixel(segmenter, image, save, tmp_path):
    (result,) = predict(segmenter, [save(tmp_path / "dot.png", image(1, 1))], tmp_path / "out")
    assert Image.open(result.mask).size == (1, 1)


def test_other_classes_give_their_own_codes(saved_run, image, save, tmp_path):
    road = ClassTable(codes=(7, 200), names=("a", "b"), colours=((0, 0, 0), (9, 9, 9)))
    segmenter = Segmenter(load_trained(saved_run(tmp_path, road), CPU), CPU)
    (result,) = predict(segmenter, [save(tmp_path / "x.jpg", image())], tmp_path / "out")
    assert set(np.unique(np.array(Image.open(result.mask)))) <= {7, 200}
