"""The commands as people type them: what they say, what they leave, and one sentence for every mistake."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petseg import Manifest
from petseg.cli.app import run, shard_app, train_app, umbrella
from petseg.inference.export import Deployable
from petseg.inference.trained import load_trained
from petseg.run.checkpoint import load_checkpoint

TINY = ["--size", "32", "--width", "4", "--depth", "3", "--batch-size", "8", "--epochs", "2", "--amp", "off",
        "--device", "cpu", "--gallery", "2"]  # fmt: skip


@pytest.fixture(scope="session")
def trained(packed, tmp_path_factory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run(train_app, "petseg-train", ["--shards", str(packed), "--run-dir", str(folder), *TINY]) == 0
    return folder


def refuses(result, *words: str) -> None:
    """Exit code 2 and one sentence on standard error that holds the words."""
    code, _, err = result
    assert code == 2, result
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert lines[0].rstrip().endswith((".", ")", "'", "OUT", "`", "?")), err
    for word in words:
        assert re.search(word, lines[0]), f"{word!r} is not in {lines[0]!r}"


# --- packing


def test_shard_packs_and_says_what(oxford, petseg):
    code, out, err = petseg("shard", oxford, "shards", "--split", "official", "--short-side", 48, "--workers", 1)
    assert (code, err) == (0, "")
    for words in ("train", "14 samples in 1 shard", "val", "test", "pet (code 1)", "rejected", "bytes out", "ignored"):
        assert words in out
    assert "petseg-train --shards shards" in out
    assert Manifest.load(Path("shards")).split("test").samples == 8
    code, out, _ = petseg("verify", "shards")
    assert code == 0 and "ok shards" in out
    code, out, _ = petseg("show", "shards", "--count", 6, "--out", "sheet.png")
    assert code == 0 and Image.open("sheet.png").width > 600
    for index in Path("shards").glob("*.idx"):
        index.unlink()
    assert petseg("index", "shards")[0] == 0
    assert petseg("verify", "shards")[0] == 0


def test_strict_turns_a_reject_into_exit_code_1(oxford_copy, petseg):
    (oxford_copy / "images" / "Drawn_2.jpg").write_bytes(b"nothing")
    for strict, expected in (([], 0), (["--strict"], 1)):
        code, out, err = petseg("shard", oxford_copy, f"out{expected}", "--short-side", 32, "--workers", 1, *strict)
        assert code == expected and err == ""
        assert "rejected Drawn_2: image is of no known format" in out
    assert Manifest.load(Path("out1")).rejected[0].key == "Drawn_2"


def test_split_is_official_where_there_are_lists(oxford, petseg):
    assert petseg("shard", oxford, "a", "--short-side", 32, "--workers", 1)[0] == 0
    assert petseg("shard", oxford, "b", "--short-side", 32, "--workers", 1, "--split", "official")[0] == 0
    assert Path("a/manifest.json").read_bytes() == Path("b/manifest.json").read_bytes()
    assert petseg("shard", "synthetic:10", "c", "--short-side", 32, "--workers", 1)[0] == 0
    assert {n: s.samples for n, s in Manifest.load(Path("c")).splits.items()} == {"train": 7, "val": 2, "test": 1}


def test_a_class_map_comes_from_toml(petseg):
    for folder in ("i", "m"):
        Path(folder).mkdir()
    for n in range(4):
        Image.fromarray(np.full((40, 40, 3), 50 * n, np.uint8)).save(f"i/{n}.jpg")
        Image.fromarray(np.full((40, 40), (0, 1, 255, 1)[n], np.uint8)).save(f"m/{n}.png")
    Path("map.toml").write_text('codes = [0, 1]\nnames = ["rest", "thing"]\nignored = [255]\n')
    code, out, _ = petseg("shard", "folder:i,m", "out", "--classes", "map.toml", "--workers", 1)
    assert code == 0 and "thing (code 1)" in out and "ignored (code 255)" in out
    code, _, err = petseg("shard", "folder:i,m", "out2", "--workers", 1)
    assert code == 2 and "no mask that was packed holds background, border, and 2 were rejected" in err
    assert "codes = [0, 1]" in err, "the class map that is proposed leaves out what the other masks hold"
    code, out, _ = petseg("shard", "folder:i,m", "out2", "--workers", 1, "--allow-rejects")
    assert code == 0 and "rejected 2: mask holds unknown codes 255" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["/no/where", "out"], "no such folder: /no/where"),
        (["empty", "out"], "empty is empty"),
        (["folder:empty,empty", "out"], "no pair of image and mask is left"),
        (["synthetic:8", "out", "--split", "both"], "--split both"),
        (["synthetic:8", "out", "--split", "official"], "no official lists; use --split random"),
        (["synthetic:8", "out", "--short-side", "3"], "--short-side 3"),
        (["synthetic:8", "out", "--quality", "200"], "--quality"),
        (["synthetic:8", "out", "--workers", "-1"], "--workers"),
        (["synthetic:8", "out", "--samples-per-shard", "0"], "--samples-per-shard"),
        (["synthetic:8", "full"], r"full already holds something else \(thesis.tex\)"),
        (["synthetic:8", "out", "--classes", "none.toml"], "class map none.toml cannot be read"),
        (["folder:i,m", "out", "--classes", "bad.toml"], "bad.toml: class map: unknown key 'colors'"),
        (["synthetic:8"], "Missing argument 'OUT'. See petseg shard --help"),
        (["tars:none*.tar", "out"], "no such file; quote the pattern"),
    ],
)
def test_bad_input_to_shard(petseg, args, words):
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("words")
    Path("bad.toml").write_text("codes = [0, 1]\ncolors = []\n")
    refuses(petseg("shard", *args), words)
    assert not Path("out").exists()
    assert [p.name for p in Path("full").iterdir()] == ["thesis.tex"]


def test_a_folder_where_no_pair_is_left(oxford_copy, petseg):
    shutil.rmtree(oxford_copy / "annotations" / "trimaps")
    (oxford_copy / "annotations" / "trimaps").mkdir()
    refuses(petseg("shard", oxford_copy, "out"), "no pair")


@pytest.mark.parametrize("command", ["verify", "show", "index"])
def test_bad_shard_folders(petseg, command):
    refuses(petseg(command, "nowhere"), "no such folder: nowhere")
    Path("bare").mkdir()
    refuses(petseg(command, "bare"), "bare (has no manifest.json|holds no .tar)")


def test_verify_names_what_it_found(packed_copy, petseg):
    tar = next(packed_copy.glob("test-*.tar"))
    data = bytearray(tar.read_bytes())
    data[2000] ^= 255
    tar.write_bytes(data)
    result = petseg("verify", packed_copy)
    assert "problem" in result[1]
    refuses(result, f"{packed_copy}: [0-9]+ problem", "SHA-256|damaged")


def limited():
    """A limit on file sizes is the full disk that a test can have."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(packed, environment):
    bin_ = Path(sys.executable).parent
    for command in (
        [bin_ / "petseg-shard", "synthetic:64", "out", "--workers", "1"],
        [bin_ / "petseg-train", "--shards", packed, "--run-dir", "run", *TINY, "--batch-size", "2"],
    ):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, preexec_fn=limited, timeout=120
        )
        refuses((done.returncode, done.stdout, done.stderr), "File too large", "(choose|free)")
    assert not [p for p in Path().rglob("*") if "partial" in p.name and p.is_file()]


def test_classes_writes_a_map_that_packs(petseg):
    for n in range(4):
        for name, pixels in (
            ("images", np.full((20, 30, 3), n, np.uint8)),
            ("masks", np.eye(20, 30, dtype=np.uint8) * 255),
        ):
            Path("my data", name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(Path("my data", name, f"{n}.png"))
    refuses_with_example = petseg("shard", "my data", "out", "--short-side", "0")
    assert refuses_with_example[0] == 2 and "petseg classes my data/masks --out classes.toml" in refuses_with_example[2]
    code, out, err = petseg("classes", "my data/masks")
    assert (code, err) == (0, "") and 'names = ["background", "foreground"]' in out and "96.67%" in out
    code, out, err = petseg("classes", "my data/masks", "--out", "classes.toml")
    assert (code, err) == (0, "") and "--classes classes.toml" in out
    code, out, err = petseg("shard", "my data", "out", "--short-side", "0", "--classes", "classes.toml")
    assert (code, err) == (0, "") and re.search(r"split by\W+chance \(70/20/10\)", out)
    refuses(petseg("classes", "nowhere"), "no such folder: nowhere")
    refuses(petseg("classes", "out"), "out holds no mask")


def test_lists_and_groups_from_the_command_line(oxford, petseg):
    names = [f"Drawn_{n}" for n in range(1, 25)]
    for name, part in (("train", names[:16]), ("val", names[16:20]), ("test", names[20:])):
        Path(f"{name}.txt").write_text("\n".join(part))
    lists = ["--train-list", "train.txt", "--val-list", "val.txt", "--test-list", "test.txt"]
    code, out, _ = petseg("shard", oxford, "listed", "--short-side", "32", *lists)
    assert code == 0 and re.search(r"split by\W+lists", out) and re.search(r"val\W+4 samples", out)
    refuses(petseg("shard", oxford, "no", "--split", "random", *lists), "--split random: leave it out, or the lists")
    assert petseg("shard", oxford, "grouped", "--split", "random", "--group", r"_(\d)")[0] == 0
    refuses(petseg("shard", oxford, "no", "--group", "Cat"), "--group 'Cat' finds nothing in the key Drawn_")


# --- training


def test_train_leaves_a_run_and_says_where(trained, packed, petseg):
    names = {p.name for p in trained.iterdir()}
    assert names == {
        "best.pt", "config.toml", "last.pt", "metrics.jsonl", "report.html", "resolved.toml", "summary.json"
    }  # fmt: skip
    code, out, err = petseg("train", "--shards", packed, "--run-dir", "again", "--tensorboard", *TINY)
    assert (code, err) == (0, "")
    assert "epoch 1/2" in out and "images/s" in out and "waiting" in out and "MB" in out
    assert re.search(r"(Loader-bound|Compute-bound|Balanced|Learned nothing|Learned nothing yet|Still rising): ", out)
    assert "Report: again/report.html" in out and "petseg predict again" in out
    assert list(Path("again").glob("events.out.tfevents.*"))


def test_without_shards_the_demo_is_drawn_packed_and_learned(petseg, monkeypatch):
    monkeypatch.setattr("petseg.cli.runs.DEMO_SAMPLES", 40)
    code, out, err = petseg("train", "--epochs", 1, "--width", 4, "--gallery", 1)
    assert (code, err) == (0, "")
    assert "No --shards were given: the recipe is demo, on 40 drawn cats and dogs" in out
    assert "petseg-shard oxford shards/oxford" in out and "report.html" in out
    assert Manifest.load(Path("shards/synthetic-40")).encoding.short_side == 96
    (folder,) = Path("runs").iterdir()
    assert 'recipe = "demo"' in (folder / "config.toml").read_text()
    code, out, _ = petseg("train", "--epochs", 1, "--width", 4, "--gallery", 1)
    assert code == 0 and "are in shards/synthetic-40 already" in out


def test_a_batch_larger_than_the_split_shrinks_to_it(packed, petseg):
    code, out, err = petseg("train", "--shards", packed, "--run-dir", "r", *TINY, "--batch-size", "64", "--epochs", "1")
    assert (code, err) == (0, "") and "--batch-size 64 becomes 42: the train split has 42 samples." in out
    assert "batch_size = 42" in Path("r/resolved.toml").read_text()
    assert "batch_size = 64" in Path("r/config.toml").read_text()


def test_flags_override_the_file(packed, petseg):
    Path("my.toml").write_text(f'shards = "{packed}"\nepochs = 1\nwidth = 4\ndepth = 3\nsize = "48"\nlr = 0.5\n')
    code, _, err = petseg("train", "--config", "my.toml", "--size", "32", "--run-dir", "run", "--gallery", 0)
    assert (code, err) == (0, "")
    config = load_checkpoint(Path("run/last.pt"))["config"]
    assert (config["size"], config["lr"], config["epochs"], config["batch_size"]) == ("32", 0.5, 1, 16)


def test_the_seed_recipe_by_name(packed, petseg):
    code, _, _ = petseg("train", "--shards", packed, "--recipe", "seed", "--size", 24, "--epochs", 1, "--run-dir", "s")
    assert code == 0 and load_checkpoint(Path("s/best.pt"))["config"]["arch"] == "seed"


def test_a_runs_own_config_makes_it_again(packed, petseg):
    flags = [flag for flag in TINY if flag not in ("--amp", "off")]
    assert petseg("train", "--shards", packed, "--run-dir", "first", *flags)[0] == 0
    asked = tomllib.loads(Path("first/config.toml").read_text())
    assert (asked["amp"], asked["loader"], asked["compile"], asked["run_dir"]) == ("auto", "auto", "auto", "")
    assert petseg("train", "--config", "first/config.toml", "--run-dir", "second")[0] == 0
    assert Path("second/config.toml").read_bytes() == Path("first/config.toml").read_bytes()
    first, second = (load_checkpoint(Path(name, "best.pt")) for name in ("first", "second"))
    assert all(torch.equal(first["ema"][name], second["ema"][name]) for name in first["ema"])


def test_every_command_says_its_version_and_its_help(petseg, capsys):
    for app, name in ((umbrella, "petseg"), (shard_app, "petseg-shard"), (train_app, "petseg-train")):
        assert run(app, name, ["--version"]) == 0
        assert re.fullmatch(rf"{name} \d+\.\d+\.\d+\n", capsys.readouterr().out)
        assert run(app, name, ["-h"]) == 0 and "--help" in capsys.readouterr().out


def test_hints_are_what_one_types_next(petseg, monkeypatch):
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    for out, start in (("a", ""), ("b", "uv run ")):
        said = petseg("shard", "synthetic:20", out, "--short-side", "32")[1]
        assert f"Train on them: {start}petseg-train --shards {out}" in said
        monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")


def test_shards_that_went_away_are_asked_for(packed_copy, petseg):
    assert petseg("train", "--shards", packed_copy, "--run-dir", "r", *TINY)[0] == 0
    packed_copy.rename("elsewhere")
    for command in ("eval", "report"):
        refuses(petseg(command, "r"), "is not a folder any more: give --shards")
        assert petseg(command, "r", "--shards", "elsewhere")[0] == 0


def test_a_cache_says_what_it_takes(packed, petseg):
    code, out, _ = petseg("train", "--shards", packed, "--cache", "host", "--run-dir", "run", *TINY)
    assert code == 0 and "--cache host takes 0.2 MB for train and val at 32 px" in out


def test_damaged_samples_are_skipped_where_that_is_asked_for(packed_copy, petseg):
    tar = packed_copy / "test-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700:760] = bytes(60)  # inside the first JPEG
    tar.write_bytes(data)
    command = ("train", "--shards", packed_copy, "--run-dir", "run", *TINY)
    refuses(petseg(*command), "test-000000.tar has another SHA-256", "--on-bad-sample skip")
    code, out, err = petseg("train", "--resume", "--run-dir", "run", "--on-bad-sample", "skip")
    assert (code, err) == (0, "") and re.search(
        r"1 damaged sample of test is left out: \S+test-000000.tar: sample", out
    )
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["damaged_samples"] == {"test": 1} and summary["samples"] == 5 and summary["skipped_samples"] == 1
    skip = ("--on-bad-sample", "skip")
    code, out, err = petseg("eval", "run", "--json", *skip)
    assert (code, err) == (0, "") and "Left out: 1 damaged sample " in out
    assert json.loads(out.splitlines()[-1])["mean_iou"] == pytest.approx(summary["mean_iou"])
    code, out, err = petseg("eval", "run", "--full-size", "--json", *skip)
    assert (code, json.loads(out.splitlines()[-1])["samples"]) == (0, 5)
    refuses(petseg("eval", "run", "--on-bad-sample", "stop"), "another SHA-256")


def test_auto_resume_starts_a_run_or_resumes_it(packed, petseg):
    Path("options.toml").write_text("epochs = 1\n")
    at = TINY.index("--epochs")
    options = [*TINY[:at], *TINY[at + 2 :], "--config", "options.toml"]
    command = ["train", "--shards", packed, "--run-dir", "run", "--auto-resume", *options]
    code, out, err = petseg(*command)
    assert (code, err) == (0, "") and "epoch 1/1" in out
    code, out, err = petseg(*command)
    assert (code, err) == (0, "") and "is finished" in out
    Path("options.toml").write_text("epochs = 2\n")
    code, out, err = petseg(*command)
    assert (code, err) == (0, "") and "epoch 2/2" in out and "epoch 1/2" not in out
    Path("options.toml").write_text("lr = 0.5\n")
    refuses(petseg(*command), "--lr 0.5: run was begun with")
    refuses(petseg("train", "--auto-resume"), "--auto-resume: give the --run-dir")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_scores_it_says_how_to_resume(packed, petseg, monkeypatch, how):
    from petseg.training import conclude

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), how)
        time.sleep(1)

    monkeypatch.setattr(conclude, "load_trained", stop)
    code, _, err = petseg("train", "--shards", packed, "--run-dir", "run", *TINY)
    assert code == 128 + how
    assert err.strip() == "error: interrupted. Resume with: petseg-train --resume --run-dir run"


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_resume(packed, environment, petseg):
    bin_ = Path(sys.executable).with_name("petseg-train")
    options = ["--shards", packed, "--run-dir", "run", *TINY, "--epochs", "40"]
    process = subprocess.Popen(
        [bin_, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while not Path("run/last.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "Stopped and saved. Resume with: petseg-train --resume --run-dir run" in out
    done = len(Path("run/metrics.jsonl").read_text().splitlines())
    code, out, err = petseg("train", "--resume", "--run-dir", "run")
    assert (code, err) == (0, "") and f"epoch {done + 1:>2}/40" in out
    assert json.loads(Path("run/summary.json").read_text())["epochs"] == 40
    code, out, err = petseg("train", "--resume", "--run-dir", "run")
    assert (code, err) == (0, "") and "run is finished (40 epochs), so there is nothing to do" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--shards", "nowhere"], "no such folder: nowhere"),
        (["--shards", "bare"], "bare has no manifest.json: pack it with petseg-shard, or run `petseg index bare`"),
        (["--loader", "tensorflow"], "--loader: unknown value 'tensorflow'; choose auto, dali, webdataset"),
        (["--recipe", "best"], "--recipe: unknown value 'best'; choose default, oxford, scenes, seed, demo"),
        (["--arch", "resnet"], "--arch: unknown network 'resnet'; choose unet, seed"),
        (["--device", "tpu"], "--device: unknown device 'tpu'"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--size", "0"], "--size: 0 is outside 1 to 8192"),
        (["--size", "big"], "--size: 'big' is not a size"),
        (["--size", "4", "--depth", "5"], "--size 4x4: this network halves .* needs at least 32 px"),
        (["--epochs", "0"], "--epochs: 0 is out of range"),
        (["--amp", "int4"], "--amp: unknown value"),
        (["--cache", "disk"], "--cache: unknown value"),
        (["--config", "nowhere.toml"], "--config: no such file: nowhere.toml"),
        (["--config", "unknown.toml"], "unknown.toml: unknown key 'epoch'; did you mean 'epochs'\\?"),
        (["--config", "broken.toml"], "broken.toml is not TOML"),
        (["--config", "wrong.toml"], "wrong.toml: --epochs: 'many' is not a whole number"),
        (["--resume"], "--resume: nothing to resume"),
        (["--resume", "--run-dir", "bare"], "--resume: nothing to resume: bare has no last.pt"),
        (["--run-dir", "full"], "--run-dir full already holds something"),
        (["--init-from", "nowhere"], "no such run: .*nowhere; give the folder"),
        (["--init-from", "bare"], "bare holds no best.pt"),
        (["--nonsense"], "No such option: --nonsense.* See petseg train --help"),
    ],
)  # fmt: skip
def test_bad_input_to_train(packed, petseg, args, words):
    Path("bare").mkdir()
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("words")
    Path("unknown.toml").write_text("epoch = 3\n")
    Path("broken.toml").write_text("epochs = = 3\n")
    Path("wrong.toml").write_text('epochs = "many"\n')
    shards = [] if "--shards" in args else ["--shards", packed]
    refuses(petseg("train", *shards, *args), words)
    assert not Path("runs").exists() and [p.name for p in Path("full").iterdir()] == ["thesis.tex"]


def test_dali_that_is_not_installed_names_the_extra(packed, petseg, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("nvidia.dali")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # what an import of something missing comes to
    refuses(petseg("train", "--shards", packed, "--loader", "dali", *TINY), "DALI is not installed", "cuda13")
    code, _, _ = petseg("train", "--shards", packed, "--run-dir", "run", *TINY)
    assert code == 0, "everything but DALI works without it"


def test_a_tar_that_is_shorter_than_the_manifest_says(packed_copy, petseg):
    tar = sorted(packed_copy.glob("train-*.tar"))[1]
    os.truncate(tar, tar.stat().st_size - 10240)
    for args in (["train", "--shards", packed_copy, *TINY], ["show", packed_copy]):
        refuses(petseg(*args), f"{tar} is shorter than the manifest says")


def test_a_manifest_of_a_newer_format(packed_copy, petseg):
    path = packed_copy / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 3'))
    for args in (["train", "--shards", packed_copy], ["verify", packed_copy], ["show", packed_copy]):
        refuses(petseg(*args), "has format 3, newer than this petseg's 2: upgrade petseg")


def test_a_checkpoint_of_another_architecture(trained, packed, petseg):
    refuses(
        petseg("train", "--shards", packed, "--init-from", trained, "--arch", "seed", "--size", "32"),
        "best.pt is of another architecture",
    )
    shutil.copytree(trained, "copy")
    refuses(petseg("train", "--resume", "--run-dir", "copy", "--width", "8"), "--width 8: copy was begun with 4")


@pytest.mark.slow
def test_a_compiler_that_fails_is_said_and_no_hindrance(packed, environment):
    command = [sys.executable, "-m", "petseg", "train", "--shards", packed, *TINY, "--epochs", "1", "--compile", "on"]
    # It is there, and ends with an error.
    done = subprocess.run(
        command, env={**environment, "CXX": "false"}, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = r"torch\.compile fails on this machine \(.*\), so torch\.compile is off; training continues without it\."
    assert len(re.findall(said, done.stdout)) == 1


# --- what comes after


def test_eval_at_another_size(packed, petseg):
    # Long enough to see more than background, which would score the same at any size.
    assert petseg("train", "--shards", packed, "--run-dir", "run", *TINY, "--batch-size", 4, "--epochs", 12)[0] == 0

    def result(*args):
        return json.loads(petseg("eval", "run", *args, "--json")[1].splitlines()[-1])

    larger, own = result("--size", "48"), result()
    assert (larger["size"], own["size"]) == ("48", "32") and larger["mean_iou"] != own["mean_iou"]
    both = result("--tta")
    assert both["tta"] and not own["tta"] and both["loss"] != own["loss"]
    assert result("--tta", "--full-size")["mean_iou"] != result("--full-size")["mean_iou"]
    assert result("--size", "48", "--full-size")["mean_iou"] != result("--full-size")["mean_iou"]
    refuses(petseg("eval", "run", "--size", "0"), "--size: 0 is outside")


def test_eval_repeats_the_runs_own_figures(trained, petseg):
    summary = json.loads((trained / "summary.json").read_text())
    code, out, _ = petseg("eval", trained, "--json")
    assert code == 0
    result = json.loads(out.strip().splitlines()[-1])
    for name in ("mean_iou", "pixel_accuracy", "dice", "samples", "baseline_mean_iou"):
        assert result[name] == pytest.approx(summary[name], abs=1e-6), name
    assert result["iou"] == pytest.approx(summary["iou"], abs=1e-6) and result["split"] == "test"
    code, out, _ = petseg("eval", trained, "--split", "val", "--full-size", "--json")
    assert code == 0 and json.loads(out.strip().splitlines()[-1])["full_size"] is True
    code, out, _ = petseg("eval", trained)
    assert code == 0 and "mean; pixel accuracy" in out


def test_the_report_is_made_again(trained, packed, petseg, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    first = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    code, out, _ = petseg("report", run)
    assert code == 0 and "report.html" in out
    assert (run / "report.html").read_bytes() == first
    refuses(petseg("report", tmp_path), "has no summary.json", "reached its end")
    (run / "config.toml").unlink()  # what it needs is in the checkpoint
    assert petseg("report", run)[0] == 0


def test_eval_on_other_shards(trained, originals, petseg):
    code, out, _ = petseg("eval", trained, "--shards", originals, "--json")
    assert code == 0 and json.loads(out.strip().splitlines()[-1])["samples"] == 8


def test_bad_input_to_eval(trained, packed_copy, petseg):
    refuses(petseg("eval", "nowhere"), "no such run: nowhere")
    refuses(petseg("eval", trained, "--split", "holdout"), "no split 'holdout'")
    refuses(petseg("eval", trained, "--shards", "nowhere"), "no such folder")
    refuses(petseg("eval", trained, "--device", "tpu"), "unknown device")
    path = packed_copy / "manifest.json"
    data = json.loads(path.read_text())
    data["classes"].update(codes=[0, 1, 2], foregrounds=[])
    path.write_text(json.dumps(data))
    refuses(petseg("eval", trained, "--shards", packed_copy), "same classes")


def test_predict_writes_masks_and_overlays(trained, oxford, petseg):
    photos = sorted((oxford / "images").glob("*.jpg"))[:2]
    code, out, _ = petseg("predict", trained, *photos, "--out", "out")
    assert code == 0 and "2 mask(s)" in out
    for photo in photos:
        mask = Image.open(f"out/{photo.stem}.png")
        assert mask.size == Image.open(photo).size and set(np.unique(mask)) <= {1, 2, 3}
        assert Path(f"out/{photo.stem}_overlay.jpg").is_file()
    options = ("--probabilities", "npy", "--tta", "--tile", "64", "--overlap", "0.5", "--amp", "off")
    code, out, _ = petseg("predict", trained, photos[0], "--out", "more", *options)
    assert code == 0 and "probabilities (_pCODE.npy)" in out
    height, width = np.asarray(Image.open(f"more/{photos[0].stem}.png")).shape
    assert [np.load(f"more/{photos[0].stem}_p{code}.npy").shape for code in (1, 2, 3)] == [(height, width)] * 3
    for option in (("--tile", "3"), ("--overlap", "2"), ("--amp", "fp8"), ("--probabilities", "tiff")):
        refuses(petseg("predict", trained, photos[0], "--out", "bad", *option), option[0])
    assert not Path("bad").exists()
    refuses(petseg("predict", trained, "nowhere.jpg", "--out", "out"), "nowhere.jpg")
    Path("words.jpg").write_text("words")
    refuses(petseg("predict", trained, "words.jpg", "--out", "out"), "words.jpg")


def test_compare_shows_runs_side_by_side(trained, petseg):
    code, out, _ = petseg("compare", trained, shutil.copytree(trained, "other"))
    assert code == 0 and "mean IoU" in out and "other" in out and "Curves: compare.html" in out
    assert "What differs" not in out
    assert "2 runs compared" in Path("compare.html").read_text()
    refuses(petseg("compare", trained), "two runs or more")


@pytest.mark.parametrize("fmt", ["onnx", "torch-export"])
def test_export_is_checked(trained, petseg, fmt):
    code, out, err = petseg(
        "export", trained, "--format", fmt, "--out", f"exported.{'onnx' if fmt == 'onnx' else 'pt2'}"
    )
    assert (code, err) == (0, "") and "Checked on" in out
    path = Path(next(iter(re.findall(r"(\S+\.(?:onnx|pt2))", out))))
    image = torch.rand(2, 3, 32, 32)
    if fmt == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        got = torch.from_numpy(session.run(None, {"images": image.numpy()})[0])
    else:
        got = torch.export.load(path).module()(image)
    assert got.shape == (2, 3, 32, 32)
    assert torch.allclose(got.sum(1), torch.ones(2, 32, 32), atol=1e-4)


@pytest.mark.parametrize("fmt", ["onnx", "torch-export"])
def test_export_of_any_size(trained, petseg, fmt):
    suffix = "onnx" if fmt == "onnx" else "pt2"
    code, out, err = petseg("export", trained, "--format", fmt, "--out", f"any.{suffix}", "--dynamic-size")
    stride = int(re.search(r"images f32\[N, 3, H, W\] \(multiples of (\d+), ", out)[1])
    assert (code, err) == (0, "")
    for height, width in ((2 * stride, 5 * stride), (7 * stride, 3 * stride)):
        image = torch.rand(3, 3, height, width)
        if fmt == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession("any.onnx", providers=["CPUExecutionProvider"])
            assert "multiples of" in session.get_modelmeta().custom_metadata_map["input"]
            got = torch.from_numpy(session.run(None, {"images": image.numpy()})[0])
        else:
            got = torch.export.load("any.pt2").module()(image)
        trained_model = load_trained(trained, torch.device("cpu"))
        with torch.no_grad():
            expected = Deployable(trained_model).eval()(image)
        assert got.shape == (3, 3, height, width) and torch.allclose(got, expected, atol=1e-4)


def test_bad_input_to_export(trained, petseg):
    refuses(petseg("export", trained, "--format", "tflite"), "tflite")
    refuses(petseg("export", "nowhere"), "no such run")


def test_doctor_says_what_this_machine_has(petseg):
    code, out, _ = petseg("doctor")
    assert code == 0
    for words in ("torch", "DALI", "compiler", "cores", "memory", "--loader auto"):
        assert re.search(words, out, re.IGNORECASE), words


# --- the doors


@pytest.mark.parametrize("name", ["petseg", "petseg-shard", "petseg-train"])
def test_every_door_opens(environment, name):
    done = subprocess.run(
        [Path(sys.executable).with_name(name), "--help"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "Usage" in done.stdout and done.stderr == ""


def test_the_script_is_the_same_command(environment):
    script = Path(__file__).parents[2] / "tools" / "make_shards.py"
    done = subprocess.run(
        [sys.executable, script, "synthetic:6", "out", "--workers", "1", "--short-side", "32"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run(shard_app, "petseg-shard", ["synthetic:6", "other", "--workers", "1", "--short-side", "32"]) == 0
    assert Path("out/manifest.json").read_bytes() == Path("other/manifest.json").read_bytes()


def test_an_output_that_nobody_reads_is_no_error(environment, packed):
    done = subprocess.run(
        f"{Path(sys.executable).with_name('petseg')} --help | true", shell=True, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_index_sends_unfit_tars_to_petseg_shard(petseg):
    Path("tars").mkdir()
    Path("a.seg.png").write_bytes(b"")
    with tarfile.open("tars/train.tar", "w") as tar:
        tar.add("a.seg.png")
    refuses(petseg("index", "tars"), "petseg-shard 'tars:tars/\\*.tar' OUT")


@pytest.mark.parametrize("loader", ["dali", "webdataset"])
def test_eval_scores_as_the_run_did(packed, petseg, tmp_path, loader):
    """In the run's precision, by its loader: a score that differs by the command that asked for it is not a score."""
    options = [*TINY[:10], "--amp", "bf16", "--loader", loader, "--device", "cpu", "--gallery", "0"]
    folder = tmp_path / "run"
    assert run(train_app, "petseg-train", ["--shards", str(packed), "--run-dir", str(folder), *options]) == 0
    code, out, _ = petseg("eval", folder, "--json")
    found, summary = json.loads(out.splitlines()[-1]), json.loads((folder / "summary.json").read_text())
    assert code == 0 and {name: found[name] for name in summary if name in found} == {
        name: summary[name] for name in found if name in summary
    }
    assert {"loss", "mean_iou", "iou", "pixel_accuracy"} <= found.keys() & summary.keys()
    code, out, _ = petseg("eval", folder, "--json", "--amp", "off", "--no-channels-last")
    assert code == 0 and json.loads(out.splitlines()[-1])["loss"] != summary["loss"]
    refuses(petseg("eval", folder, "--loader", "tensorflow"), "--loader: unknown value 'tensorflow'")


def shell(line: str, environment) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m petseg"
    return subprocess.run(
        ["bash", "-c", line.replace("petseg", command)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["verify SHARDS", "shard --help"])
def test_output_that_cannot_be_written_is_said(packed, environment, command):
    done = shell(f"petseg {command.replace('SHARDS', str(packed))} > /dev/full", environment)
    assert done.returncode == 2
    assert (
        done.stderr.strip() == "error: standard output cannot be written (No space left on device): send it elsewhere."
    )


def test_a_reader_that_goes_away_ends_it_without_a_word(packed, environment):
    done = shell("petseg train --help | true; exit ${PIPESTATUS[0]}", environment)
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.parametrize("option", ["--shards", "--run-dir"])
def test_a_path_in_other_bytes_than_utf8_is_said_before_anything_is_written(packed, environment, option):
    paths = {"--shards": str(packed), "--run-dir": "run", option: os.fsdecode(b"d\xe9t")}
    words = [word for pair in paths.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-m", "petseg", "train", *words, *TINY], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {option}: 'd".encode() + b"\xe9t' is not valid UTF-8")
    assert not list(Path().iterdir())
