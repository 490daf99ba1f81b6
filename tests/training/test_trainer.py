"""A run from its configuration to its summary: what it leaves, how it stops, and that it resumes."""

import dataclasses
import io
import json
import os
import shutil
import signal
import statistics
import tarfile
import time
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

from petseg import Manifest
from petseg.classes import OXFORD
from petseg.config import TrainConfig
from petseg.data.shards.adopt import adopt
from petseg.errors import PetsegError
from petseg.inference.trained import load_trained
from petseg.run.checkpoint import checkpoint_path, load_checkpoint, read_saved
from petseg.run.folder import RunFolder, new_run_folder, newest_run_folder
from petseg.training import saving

LOADERS = ("dali", "webdataset")


def weights(run, name="last.pt"):
    data = load_checkpoint(run.path / name)
    return {**{f"model.{k}": v for k, v in data["model"].items()}, **{f"ema.{k}": v for k, v in data["ema"].items()}}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def content(run):
    return {path.name: path.read_bytes() for path in run.path.iterdir()}


def untimed(run):
    timed = {"images_per_s", "data_wait_pct", "memory_mb", "seconds"}
    return [{k: v for k, v in record.items() if k not in timed} for record in run.records()]


def test_the_threads_that_were_asked_for_compute(train):
    before = torch.get_num_threads()
    result, _ = train(epochs=1, compute_threads=3)
    assert [record["threads"] for record in result.run.records()] == [3]
    assert result.summary["device"] == "cpu (3 threads)"
    assert torch.get_num_threads() == before


def test_a_run_leaves_everything_that_it_promises(train, packed):
    result, listener = train(epochs=3)
    run = result.run
    assert result.exit_code == 0
    assert sorted(p.name for p in run.path.iterdir()) == [
        "best.pt", "config.toml", "last.pt", "metrics.jsonl", "resolved.toml", "summary.json"
    ]  # fmt: skip
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary == result.summary
    assert summary["epochs"] == 3 and summary["split"] == "test" and summary["samples"] == 6
    assert summary["loader"] == "webdataset" and summary["device"].startswith("cpu")
    for name in ("images_per_s", "mean_iou", "pixel_accuracy", "dice", "seconds", "peak_memory_mb"):
        assert summary[name] > 0, name
    assert 0 <= summary["data_wait_pct"] <= 100
    assert set(summary["iou"]) == {"pet", "background", "border"}
    assert summary["verdict"]["why"] and summary["verdict"]["option"].startswith("--")
    assert set(summary["foreground_iou"]) == {"{1}", "{1,3}"}
    assert [r["epoch"] for r in run.records()] == [1, 2, 3] == [r["epoch"] for r in listener.records]
    assert listener.steps == 3 * (42 // 8)
    written = tomllib.loads((run.path / "resolved.toml").read_text())
    assert TrainConfig(**written).shards == str(packed) and written["device"] == "cpu"
    assert written["run_dir"] == str(run.path)
    asked = tomllib.loads((run.path / "config.toml").read_text())
    assert asked == {
        **written,
        "run_dir": "",
        "compile": asked["compile"],
        "cache": "auto",
        "optimizer": "auto",
        "fit": "auto",
        "window": -1,
        "lanes": 0,
    }
    assert (written["optimizer"], written["fit"]) == ("muon", "squash")
    best = load_checkpoint(run.path / "best.pt")
    assert best["epoch"] == summary["best_epoch"] >= max(run.records(), key=lambda r: r["val"]["mean_iou"])["epoch"]
    assert best["data_digest"] == Manifest.load(packed).digest and best["decode_policy"] == "fancy-upsampling"


def test_it_learns(train):
    result, _ = train(epochs=25, lr=1e-2, ema=0.9, augment=False, dropout=0.0, batch_size=6)
    records = result.run.records()
    assert records[-1]["train_loss"] < 0.6 * records[0]["train_loss"]
    assert result.summary["mean_iou"] > result.summary["baseline_mean_iou"] + 0.15


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("stop_at", [2, 5, 7])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(train, loader, stop_at):
    """In the middle of an epoch, at its last step, and in the middle of the second one."""
    whole, _ = train("whole", epochs=3, loader=loader, dropout=0.2)

    def interrupt(step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    stopped, _ = train("stopped", epochs=3, loader=loader, dropout=0.2, on_step=interrupt)
    assert stopped.exit_code == 130 and stopped.summary is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed, listener = train("stopped", resume=True)
    assert listener.steps == 15 - stop_at
    assert_equal(weights(whole.run), weights(resumed.run))
    assert_equal(weights(whole.run, "best.pt"), weights(resumed.run, "best.pt"))
    assert untimed(whole.run) == untimed(resumed.run)
    assert whole.summary["mean_iou"] == resumed.summary["mean_iou"]


def test_a_run_names_how_it_decodes_and_is_resumed_with_nothing_else(train):
    result, _ = train(epochs=1, chroma="simple")
    saved = read_saved(result.run.path)
    assert (saved.decode_policy, saved.config.chroma) == ("simple-upsampling", "simple")
    with pytest.raises(PetsegError, match=r"--chroma fancy: .* begun with simple"):
        train(resume=True, epochs=2, chroma="fancy")
    again, _ = train(resume=True, epochs=2)
    assert again.summary["epochs"] == 2


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("saves", "kept"), [({"save_every_steps": 3}, 6), ({"save_every_minutes": 1e-9}, 6), ({}, 5)], ids=str
)
def test_a_killed_run_resumes_from_its_last_save_to_the_same_bits(train, saves, kept):
    whole, _ = train("whole", epochs=3, dropout=0.2)

    def kill(step):
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        train("killed", epochs=3, dropout=0.2, on_step=kill, **saves)
    resumed, listener = train("killed", resume=True)
    assert listener.steps == 15 - kept
    assert_equal(weights(whole.run), weights(resumed.run))
    assert untimed(whole.run) == untimed(resumed.run)


@pytest.mark.parametrize("stop_at", [None, 17])
def test_epochs_too_short_for_a_checkpoint_each_lose_nothing(train, monkeypatch, stop_at):
    """As on a GPU: the run is saved where it stops, and its best epoch is the same one, with the same bits."""
    # So that the best epoch is the one of the highest score.
    monkeypatch.setattr(statistics, "stdev", lambda scores: 0.0)
    every, _ = train("every", epochs=6)
    monkeypatch.setattr(saving, "QUICK_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1e-6)
    saved = []
    whole_save = saving.save_run
    monkeypatch.setattr(saving, "save_run", lambda *given: (saved.append(given), whole_save(*given)))

    def interrupt(step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    rare, _ = train("rare", epochs=6, on_step=interrupt)
    if stop_at:
        assert rare.exit_code == 130
        rare, _ = train("rare", resume=True)
    assert len(saved) <= (4 if stop_at else 2)  # at the first epoch's end of each session, where it stopped, at the end
    assert rare.summary["best_epoch"] == every.summary["best_epoch"] < 6  # or the last save would hold it anyway
    for name in ("last.pt", "best.pt"):
        assert_equal(weights(rare.run, name), weights(every.run, name))
    assert untimed(rare.run) == untimed(every.run)


def test_a_run_resumes_under_the_other_loader(train):
    whole, _ = train("whole", epochs=2)
    train("run", epochs=2, on_step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None)
    resumed, _ = train("run", resume=True, loader="dali")
    assert resumed.summary["epochs"] == 2 and resumed.summary["loader"] == "dali"
    a, b = weights(whole.run), weights(resumed.run)
    # The images differ by rounding alone, so the weights stay near.
    assert max(float((a[k] - b[k]).abs().max()) for k in a if a[k].is_floating_point()) < 0.1


def test_a_finished_run_can_be_given_more_epochs(train):
    train(epochs=1)
    result, listener = train(resume=True, epochs=3)
    assert result.summary["epochs"] == 3 and listener.steps == 2 * 5
    before = content(result.run)
    again, listener = train(resume=True)
    assert listener.steps == 0 and again.summary["epochs"] == 3 and again.test is None
    assert len(listener.notes) == 1 and "is finished (3 epochs)" in listener.notes[0]
    assert content(result.run) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "48"}, "--size 48: .* was begun with 32"),
        ({"lr": 0.1}, "--lr 0.1: .* was begun with 0.006"),
        ({"depth": 4}, "--depth 4"),
        ({"optimizer": "adam"}, "--optimizer adam: .* muon"),
        ({"amp": "fp16"}, "--amp fp16: .* off"),
        ({"seed": 3}, "--seed 3"),
        ({"augment": False}, "--augment False"),
        ({"init_from": "elsewhere"}, "--init-from elsewhere: .* none"),
        ({"epochs": 1}, "--epochs: 1 is too few: this run was begun with --epochs 2"),
    ],
    ids=str,
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_would_change_the_course_is_refused(train, options, words, finished):
    stop = None if finished else (lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None)
    result, _ = train(epochs=2, on_step=stop)
    before = content(result.run)
    with pytest.raises(PetsegError, match=words):
        train(resume=True, **options)
    assert content(result.run) == before, "the run was touched"


def rates(result):
    return [record["lr"] for record in result.run.records()]


def test_a_run_ends_in_its_minutes_and_resumes_to_more(train):
    """Stopped half-way; taken up by what is left of its limit; then by an explicit number of epochs."""
    train("warm", epochs=1)  # what is imported for a first run is not of its time
    began = time.perf_counter()

    def interrupt(step):
        if step == 40:
            os.kill(os.getpid(), signal.SIGINT)

    stopped, listener = train("timed", epochs=None, max_minutes=0.12, on_step=interrupt)
    assert stopped.exit_code == 130 and "max_minutes = 0.12" in stopped.run.config.read_text()
    timed, again = train("timed", resume=True)
    took = time.perf_counter() - began
    assert 0.5 * 7.2 < took < 1.1 * 7.2, "it is a limit, of which most is used: no report is written here"
    assert listener.steps == 40 and again.steps > 10 and timed.summary["mean_iou"] is not None
    assert "each of which takes" in " ".join([*listener.notes, *again.notes])
    course = rates(timed)
    top = course.index(max(course))
    assert course[top:] == sorted(course[top:], reverse=True), "what fell does not rise again"
    assert course[-1] < 0.05 * max(course), "the schedule ends with the time"
    _, listener = train("timed", resume=True)
    assert "is finished" in listener.notes[-1]
    reached = load_checkpoint(timed.run.last)["loader"]["epoch"]
    longer, _ = train("timed", resume=True, epochs=reached + 1)
    assert load_checkpoint(longer.run.last)["loader"]["epoch"] == reached + 1
    assert "epochs" in longer.run.resolved() and longer.run.resolved()["max_minutes"] == 0


def test_steps_that_become_slow_do_not_break_the_limit(train):
    """Threefold, by a loader and a reporter that wait; the schedule still comes to its end."""
    began, marks = time.perf_counter(), []

    def slow(step):
        marks.append(time.perf_counter())
        if marks[-1] - began > 3 and len(marks) > 1:
            time.sleep(0.03)

    result, _ = train(epochs=None, max_minutes=0.1, on_step=slow, batch_size=1)
    took = time.perf_counter() - began
    assert 0.5 * 6 < took < 1.1 * 6, "it is a limit, of which most is used: no report is written here"
    assert result.run.records()[-1]["lr"] < 1e-3, "the schedule was fitted anew"


def test_minutes_that_are_too_few(train, tmp_path):
    with pytest.raises(
        PetsegError, match=r"--max-minutes 0.01: the start, one step and the scores take 0\.\d+ minutes"
    ):
        train(epochs=None, max_minutes=0.01)
    assert not (tmp_path / "run").exists()


def test_what_was_changed_on_resume_is_remembered(train):
    train(epochs=1)
    stopped, _ = train(
        resume=True, epochs=4, num_threads=1, cache="host",
        on_step=lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 7 else None,
    )  # fmt: skip
    assert stopped.exit_code == 130
    result, listener = train(resume=True)
    assert result.summary["epochs"] == 4 and listener.steps == 3 * 5 - 7
    written = tomllib.loads(result.run.config.read_text())
    assert (written["epochs"], written["num_threads"], written["cache"]) == (4, 1, "host")


def test_paths_and_devices_are_recorded_for_any_folder_and_rank(train, packed, monkeypatch):
    monkeypatch.chdir(packed.parent)
    result, _ = train(epochs=1, shards=packed.name)
    written = tomllib.loads(result.run.config.read_text())
    assert written["shards"] == str(packed) and written["device"] == "cpu"
    monkeypatch.chdir("/")
    train(resume=True, epochs=2)


def test_a_run_that_was_killed_before_it_saved_does_not_block_its_folder(train, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.toml", "metrics.jsonl", "best.pt.next", ".last.pt.partial-7", "events.out.tfevents.1.host"):
        (folder / name).write_text("half")
    result, _ = train(epochs=1)
    assert result.summary["epochs"] == 1


@pytest.mark.parametrize("committed", [True, False])
def test_a_kill_between_best_and_last_leaves_them_of_one_run(train, packed_copy, monkeypatch, committed):
    """Both orders of the two renames: before the commit the staged best never counted, after it it does."""
    from petseg.run import checkpoint

    manifest = Manifest.load(packed_copy)
    splits = {"train": manifest.split("train")}  # without val each epoch is the best so far
    dataclasses.replace(manifest, splits=splits).save(packed_copy)
    options = {"epochs": 2, "shards": str(packed_copy)}
    whole, _ = train("whole", **options)
    saves = []

    def killed(*args):
        saves.append(args)
        if len(saves) == 2:
            raise KeyboardInterrupt

    save, replace = checkpoint.save_checkpoint, checkpoint.replace_durably

    def save_or_die(path, data):
        if path.name == "last.pt":
            killed()
        save(path, data)

    if committed:
        monkeypatch.setattr(checkpoint, "replace_durably", lambda *paths: killed() or replace(*paths))
    else:
        monkeypatch.setattr(checkpoint, "save_checkpoint", save_or_die)
    with pytest.raises(KeyboardInterrupt):
        train("run", **options)
    monkeypatch.undo()
    run = RunFolder(whole.run.path.parent / "run")
    assert (run.path / "best.pt.next").exists()
    assert checkpoint_path(run.path).name == ("best.pt.next" if committed else "best.pt")
    assert load_checkpoint(checkpoint_path(run.path))["epoch"] == (2 if committed else 1)
    resumed, _ = train("run", resume=True)
    assert not (run.path / "best.pt.next").exists()
    for name in ("last.pt", "best.pt"):
        assert_equal(weights(whole.run, name), weights(resumed.run, name))


def test_a_best_checkpoint_is_no_last_one(train):
    result, _ = train(epochs=1)
    shutil.copy(result.run.path / "best.pt", result.run.last)
    with pytest.raises(PetsegError, match=r"last\.pt has no training state \('step' is missing\).*--init-from"):
        train(resume=True, epochs=2)


def test_damaged_metrics_are_written_again(train):
    result, _ = train(epochs=1)
    (result.run.path / "metrics.jsonl").write_bytes(b"\xff{ no json")
    again, _ = train(resume=True, epochs=2)
    assert [record["epoch"] for record in again.run.records()] == [1, 2]


def test_both_loaders_reach_the_same_score(train):
    scores = [train(name, epochs=8, loader=name, lr=1e-2, ema=0.9)[0].summary["mean_iou"] for name in LOADERS]
    assert abs(scores[0] - scores[1]) < 0.05


@pytest.mark.parametrize("cache", ["host", "device"])
def test_a_cache_changes_nothing_but_the_time(train, cache):
    plain, _ = train("plain", epochs=3)
    cached, _ = train("cached", epochs=3, cache=cache)
    assert_equal(weights(plain.run), weights(cached.run))


@pytest.mark.parametrize("size", ["100", "97x133", "33x20"])
@pytest.mark.parametrize("arch", ["unet", "seed"])
def test_odd_sizes_train(train, size, arch):
    if arch == "seed" and size != "33x20":
        size = "25x31"  # odd too, and the notebook's network is slow
    result, _ = train(size=size, arch=arch, epochs=1, depth=5, batch_size=21)
    assert result.summary["epochs"] == 1


def test_the_seed_recipe_is_the_notebooks(train, packed):
    from petseg.config import resolve

    config = resolve({"recipe": "seed"})
    assert (config.arch, config.size, config.epochs, config.batch_size) == ("seed", "100", 5, 32)
    assert (config.optimizer, config.lr, config.schedule, config.weight_decay) == ("adam", 1e-3, "constant", 0)
    assert (config.augment, config.normalise, config.dice, config.ema, config.grad_clip) == (False, False, 0, 0, 0)
    result, _ = train(recipe="seed", size="24", epochs=1, arch="seed")
    assert load_checkpoint(result.run.path / "best.pt")["ema"] is None


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "group"}, {"stem": 2}, {"recipe": "oxford"}, {"upsample": "bilinear"}, {"channels_last": False},
        {"schedule": "cosine"},
        {"schedule": "constant", "optimizer": "adam"}, {"dropout": 0.5}, {"dice": 0.0}, {"amp": "bf16"},
        {"window": 1}, {"augment": False, "normalise": False, "ema": 0.0, "grad_clip": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_trains(train, options):
    result, _ = train(epochs=1, **options)
    assert result.summary["mean_iou"] is not None


def test_patience_stops_it(train):
    result, listener = train(epochs=30, lr=1e-9, patience=2, ema=0.0, schedule="constant", dropout=0.0)
    assert result.summary["epochs"] < 30
    assert any("--patience 2" in note for note in listener.notes)


def test_init_from_takes_the_other_runs_weights(train):
    first, _ = train("first", epochs=2)
    second, _ = train("second", epochs=1, lr=1e-12, init_from=str(first.run.path), schedule="constant", ema=0.0)
    a, b = load_trained(first.run.path, torch.device("cpu")), load_trained(second.run.path, torch.device("cpu"))
    for (name, x), y in zip(a.network.named_parameters(), b.network.parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-6), name


def test_weights_of_another_architecture_are_refused(train):
    first, _ = train("first", epochs=1)
    with pytest.raises(PetsegError, match=r"best\.pt is of another architecture than --arch, --width"):
        train("second", width=5, init_from=str(first.run.path))


def test_a_loss_that_is_no_number_ends_it(train):
    with pytest.raises(PetsegError, match=r"no longer finite .* in epoch 1 .*none yet.* Try a lower --lr"):
        train(lr=1e30, grad_clip=0.0, schedule="constant", ema=0.0)


def test_weights_that_are_no_numbers_are_never_saved(train, tmp_path):
    """The last step of an epoch spoils the weights, while its own loss was still a number."""
    with pytest.raises(PetsegError, match=r"the weights are no longer finite in epoch 1 .*none yet.* Try a lower --lr"):
        train(lr=3e38, grad_clip=0.0, schedule="constant", batch_size=42, dropout=0.0)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.toml", "resolved.toml"]


def test_no_json_holds_what_is_no_number(tmp_path):
    run = RunFolder(tmp_path)
    run.write_records([{"epoch": 1, "val": {"loss": float("nan"), "iou": [float("inf"), 0.5]}}])
    assert run.records() == [{"epoch": 1, "val": {"loss": None, "iou": [None, 0.5]}}]


def test_batch_norm_over_one_value_is_refused_before_anything_is_made(train, tmp_path):
    with pytest.raises(PetsegError, match=r"--size 16x16 --batch-size 1: BatchNorm .* --norm group"):
        train(size="16", batch_size=1, depth=5)
    assert not (tmp_path / "run").exists()
    train(size="16", batch_size=1, depth=5, norm="group", epochs=1)


def test_one_budget_covers_all_cached_splits(train, monkeypatch, tmp_path):
    one, both = (n * (32 * 32 * 4 + 16 + 1) for n in (42, 42 + 12))
    monkeypatch.setattr("petseg.data.loaders.cache.available_memory", lambda: (one + both) // 2)
    with pytest.raises(PetsegError, match=rf"--cache host: .*\({both} bytes\)"):
        train(cache="host")
    assert not (tmp_path / "run").exists()


def repainted(shards, splits, paint, classes=None):
    """Change the masks of some splits in place."""
    for path in (path for split in splits for path in shards.glob(f"{split}-*.tar")):
        members = []
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".png"):
                    buffer = io.BytesIO()
                    Image.fromarray(paint(np.array(Image.open(io.BytesIO(data))))).save(buffer, "PNG")
                    data = buffer.getvalue()
                members.append((member.name, data))
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (shards / "manifest.json").unlink()
    adopt(shards, classes)


def test_masks_that_are_all_ignored_teach_nothing_and_score_nothing(train, packed_copy):
    options = {"shards": str(packed_copy), "epochs": 2}
    classes = dataclasses.replace(OXFORD, ignored=(9,))

    def nothing(mask):
        return np.full_like(mask, 9)

    repainted(packed_copy, ["val"], nothing, classes)
    result, listener = train("val", **options)
    assert any("Every pixel of val's masks is ignored" in note for note in listener.notes)
    assert [record["val"]["loss"] for record in result.run.records()] == [None, None]
    assert result.summary["best_epoch"] == 2 and result.summary["mean_iou"] is not None
    repainted(packed_copy, ["train"], nothing, classes)
    with pytest.raises(PetsegError, match="nothing was learned in 5 steps: every pixel of their masks is ignored"):
        train("train", **options)
    repainted(packed_copy, ["test"], nothing, classes)
    with pytest.raises(PetsegError, match=r"nothing to learn: every pixel .* is ignored \(codes 9\)"):
        train("none", **options)


def test_a_class_that_never_appears_is_named(train, packed_copy):
    """Border becomes background in the val split alone."""
    repainted(packed_copy, ["val"], lambda mask: np.where(mask == 3, 2, mask).astype(np.uint8))
    _, listener = train(shards=str(packed_copy), epochs=2)
    assert [note for note in listener.notes if note.startswith("border: no pixel of the val split")] == listener.notes


def test_a_missing_compiler_is_said_and_no_hindrance(train, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    result, listener = train(compile="on", epochs=1)
    assert listener.notes == ["no C++ compiler was found, so torch.compile is off; training continues without it."]
    assert result.summary["compile"] == "off"


def test_auto_does_not_compile_a_short_run(train):
    result, listener = train(compile="auto", epochs=1)
    assert result.summary["compile"] == "off" and not listener.notes


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(train):
    plain, _ = train("plain", epochs=2)
    compiled, _ = train("compiled", epochs=2, compile="on")
    assert compiled.summary["compile"] == "on"
    assert abs(compiled.run.records()[-1]["train_loss"] - plain.run.records()[-1]["train_loss"]) < 0.02


def test_shards_without_val_or_test_are_trained_on_all_the_same(train, packed_copy):
    manifest = Manifest.load(packed_copy)
    dataclasses.replace(manifest, splits={"train": manifest.split("train")}).save(packed_copy)
    result, listener = train(shards=str(packed_copy), epochs=3, patience=1)  # which has nothing to go by
    assert result.summary["split"] == "train" and result.summary["best_epoch"] == 3
    assert any("no val split" in note for note in listener.notes)
    assert any("no test split: the scores are of train" in note for note in listener.notes)


def test_a_run_folder_that_holds_something_is_left_alone(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("words")
    with pytest.raises(PetsegError, match=r"--run-dir .* already holds something"):
        train()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_is_named(train):
    result, _ = train(epochs=1)
    (result.run.path / "last.pt").write_bytes(b"nothing")
    with pytest.raises(PetsegError, match=r"last\.pt is damaged or not a petseg checkpoint"):
        train(resume=True)


def test_other_shards_are_not_resumed_on(train, originals):
    train(epochs=1)
    with pytest.raises(PetsegError, match="not the shards that the run was trained on"):
        train(resume=True, epochs=2, shards=str(originals))


def test_run_folders_have_names_of_their_own(tmp_path):
    from datetime import datetime

    now = datetime(2024, 2, 3, 4, 5, 6)
    first = new_run_folder(tmp_path, "default-unet", now)
    assert first.path.name == "20240203-040506-default-unet"
    first.create()
    second = new_run_folder(tmp_path, "default-unet", now)
    second.create()
    assert second.path.name == "20240203-040506-default-unet-2"
    with pytest.raises(PetsegError, match="nothing to resume"):
        newest_run_folder(tmp_path)
    for age, run in enumerate((first, second)):
        run.last.write_bytes(b"")
        os.utime(run.last, (100 - age, 100 - age))
    assert newest_run_folder(tmp_path) == RunFolder(first.path)


def test_nothing_half_written_is_left_by_a_full_disk(train, tmp_path, monkeypatch):
    import errno

    from petseg import system

    real = os.fsync

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def after_two(step):
        if step == 7:
            monkeypatch.setattr(system.os, "fsync", full)

    with pytest.raises(
        PetsegError, match=r"(metrics\.jsonl|last\.pt) could not be written \(No space left on device\)"
    ):
        train(epochs=3, on_step=after_two)
    monkeypatch.setattr(system.os, "fsync", real)
    assert not [p for p in (tmp_path / "run").iterdir() if "partial" in p.name]
    result, _ = train(resume=True)
    assert result.summary["epochs"] == 3
    shutil.rmtree(tmp_path / "run")


def test_weights_whose_bits_flipped_are_refused(train):
    result, _ = train(epochs=1)
    data = bytearray(result.run.last.read_bytes())
    weights = load_checkpoint(result.run.last)["model"].values()
    at = data.find(next(weight.numpy().tobytes() for weight in weights if weight.ndim == 1 and weight.std() > 0))
    assert at > 0
    data[at + 3] ^= 64
    result.run.last.write_bytes(data)
    with pytest.raises(PetsegError, match="is damaged or not a petseg checkpoint"):
        load_checkpoint(result.run.last)
