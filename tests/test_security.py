"""Data, checkpoints and folders that other people made: none of them runs anything or writes elsewhere."""

import ast
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import petseg
from petseg.cli.app import run, umbrella
from petseg.data.shards.writer import ShardWriter
from petseg.system import write_atomic

ROOT = Path(petseg.__file__).parent


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs `petseg ARGS` in an empty folder, and expects one sentence that holds some words."""
    monkeypatch.chdir(tmp_path)

    def call(words: str, *args: object) -> str:
        assert run(umbrella, "petseg", [str(a) for a in args]) == 2, args
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1 and words in err, err
        return err

    return call


def calls(name: str):
    """Every call of `name` in petseg's own code, with its file."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield path.relative_to(ROOT), {word.arg: ast.unparse(word.value) for word in node.keywords}, node


def test_no_file_that_may_shrink_is_mapped():
    """That would be a SIGBUS; only memory that petseg has made itself is mapped, and a file of its own cache."""
    assert {path for path, _, _ in calls("mmap.mmap")} == {Path("data/loaders/child.py"), Path("data/loaders/cache.py")}
    assert {path for path, _, _ in calls("np.memmap")} == {Path("data/shards/spans.py")}


def test_no_shell_no_pickle_no_code_from_data():
    for name in ("os.system", "os.popen", "eval", "exec", "pickle.load", "yaml.load"):
        assert not list(calls(name)), name
    # A loader and the processes that it started talk so to each other; no file and no other program is listened to.
    among_themselves = {Path("data/loaders/child.py"), Path("data/loaders/crew.py")}
    assert {path for path, _, _ in calls("pickle.loads")} == among_themselves
    # What it unpacks was packed by the same process, and never left it.
    assert {path for path, _, _ in calls("marshal.loads")} == {Path("data/sources/pairs.py")}
    for path, words, _ in calls("torch.load"):
        assert words.get("weights_only") == "True", path
    for name in ("np.load", "np.save"):
        for path, words, _ in calls(name):
            assert words.get("allow_pickle") == "False", path
    started = [*calls("subprocess.run"), *calls("subprocess.Popen")]
    assert started, "the check looks at nothing"
    for path, words, node in started:
        assert "shell" not in words and isinstance(node.args[0], ast.List), path


@pytest.mark.parametrize(
    "source",
    ["pipe:touch owned", "tars:pipe:touch owned", "tars:| touch owned", "folder:pipe:touch owned,x", "file:///etc",
     "ais://x"],
)  # fmt: skip
def test_pipes_and_unknown_schemes_are_names_of_files_that_are_not_there(refused, source):
    refused("no such", "shard", source, "out")
    refused("no such folder", "train", "--shards", source)
    refused("no such folder", "verify", source)


@pytest.mark.parametrize("source", ["http://127.0.0.1:9/y.tar", "s3://bucket/x-{000..009}.tar"])
def test_addresses_are_of_stores_and_never_of_commands_or_files(refused, source, monkeypatch):
    monkeypatch.setattr("petseg.data.objects.FIRST_PATIENCE", 0.2)
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }.items():
        monkeypatch.setenv(name, value)
    refused("name what is in a store as folder:IMAGES,MASKS", "shard", source, "out")
    for command in (("train", "--shards"), ("verify",)):
        refused(f"{source}/manifest.json: nothing for", *command, source)
    assert sorted(p.name for p in Path().iterdir()) == []


def member(name: str, data: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def any_image(kind: str) -> bytes:
    buffer = io.BytesIO()
    mode = "RGB" if kind == "JPEG" else "L"
    Image.fromarray(np.ones((40, 40, 3) if mode == "RGB" else (40, 40), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


SOUND = [member("sound.jpg", any_image("JPEG")), member("sound.png", any_image("PNG"))]
HOSTILE = {
    "up": [member("../../up.jpg", any_image("JPEG")), member("../../up.png", any_image("PNG"))],
    "absolute": [member("/tmp/petseg-up.jpg", any_image("JPEG")), member("/tmp/petseg-up.png", any_image("PNG"))],
    "link": [member("up.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), member("up.png", any_image("PNG"))],
    "hard link": [member("up.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd"), member("up.png", any_image("PNG"))],
    "device": [member("up.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5), member("up.png", any_image("PNG"))],
    "pipe": [member("up.jpg", type=tarfile.FIFOTYPE), member("up.png", any_image("PNG"))],
    "sparse": [
        member("up.jpg", any_image("JPEG"), pax_headers={"GNU.sparse.map": "0,512", "GNU.sparse.size": "4096",
                                                       "GNU.sparse.numblocks": "1"}),
        member("up.png", any_image("PNG")),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_members_of_tars_never_become_files(what, tmp_path, monkeypatch, capsys):
    """They are read where they lie; what is not a plain file is not a sample."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with tarfile.open("x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in [*SOUND, *HOSTILE[what]]:
            tar.addfile(info, io.BytesIO(data))
    code = run(
        umbrella, "petseg", ["shard", "tars:x.tar", "out", "--split", "random", "--short-side", "0", "--allow-rejects"]
    )
    err = capsys.readouterr().err
    if what == "sparse":
        assert code == 2 and "holes" in err
    else:
        assert code == 0
        with tarfile.open(next(Path("out").glob("*.tar"))) as tar:
            names = tar.getnames()
        assert "sound.jpg" in names and all("/" not in name and ".." not in name for name in names)
    assert not Path("/tmp/petseg-up.jpg").exists()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert all(name == "a/b/x.tar" or name.startswith("a/b/out/") for name in found), found


def bomb() -> bytes:
    """A PNG of 3.8 billion pixels, by its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 61_680, 61_680, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def test_bombs_are_refused_by_every_command_before_they_are_decoded(refused, trained_run, capsys):
    for folder in ("images", "masks"):
        Path("bombs", folder).mkdir(parents=True)
        Path("bombs", folder, "a.png").write_bytes(bomb())
    Path("bomb.png").write_bytes(bomb())
    with tarfile.open("a.tar", "w") as tar:
        for info, data in (member("a.jpg", any_image("JPEG")), member("a.png", bomb())):
            tar.addfile(info, io.BytesIO(data))
    Path("tars").mkdir()
    Path("a.tar").rename("tars/a.tar")
    refused("too large", "shard", "bombs", "out")
    refused("too large", "shard", "tars:tars/a.tar", "out")
    refused("too large", "index", "tars")
    refused("too large", "classes", "bombs/masks")
    refused("too large", "predict", trained_run, "bomb.png", "--out", "out")
    refused("too large", "export", trained_run, "--format", "torch-export", "--image", "bomb.png", "--out", "x.pt2")
    assert not Path("out").exists() or not list(Path("out").iterdir())


class Payload:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.fixture(scope="module")
def trained_run(packed, tmp_path_factory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = {
        "shards": str(packed), "run_dir": str(folder), "size": "32", "width": 4, "depth": 3, "epochs": 1,
        "batch_size": 8, "device": "cpu", "amp": "off", "compile": "off", "gallery": 0,
    }  # fmt: skip
    petseg.train(options)
    return folder


@pytest.mark.parametrize("form", ["plain pickle", "inside a checkpoint"])
def test_a_checkpoint_that_is_a_program_is_not_run(refused, trained_run, packed, form):
    run_folder = Path("run")
    run_folder.mkdir()
    for name in ("config.toml", "summary.json", "metrics.jsonl"):
        (run_folder / name).write_bytes((trained_run / name).read_bytes())
    for name in ("best.pt", "last.pt"):
        if form == "plain pickle":
            (run_folder / name).write_bytes(pickle.dumps(Payload()))
        else:
            torch.save({"format": 2, "config": {}, "model": Payload()}, run_folder / name)
            assert zipfile.is_zipfile(run_folder / name)
    Path("photo.jpg").write_bytes(any_image("JPEG"))
    for command in (
        ("eval", "run"), ("predict", "run", "photo.jpg", "--out", "out"), ("export", "run"), ("report", "run"),
        ("train", "--resume", "--run-dir", "run"),
        ("train", "--shards", packed, "--init-from", "run", "--run-dir", "other", "--size", "32", "--device", "cpu"),
    ):  # fmt: skip
        refused("is damaged or not a petseg checkpoint", *command)
    assert not Path("owned").exists()


@pytest.fixture
def precious(tmp_path) -> Path:
    """A file outside of every folder that is given."""
    path = tmp_path / "precious"
    path.write_text("precious")
    return path


def test_a_link_in_the_place_of_an_unfinished_file_is_not_followed(tmp_path, precious, monkeypatch):
    monkeypatch.setattr("petseg.system.secrets.token_hex", lambda _: "00")  # as if it could be guessed
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("file", "a.tar", "a.idx"):
        (folder / f".{name}.partial-00").symlink_to(precious)
        (folder / name).symlink_to(precious)
    write_atomic(folder / "file", b"new")
    with ShardWriter(folder, "a.tar") as writer:
        writer.add("a", b"image", b"mask")
    assert precious.read_text() == "precious"
    assert not any((folder / name).is_symlink() for name in ("file", "a.tar", "a.idx"))


def test_nothing_is_packed_through_a_link(refused, tmp_path, precious):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / ".packing").symlink_to(elsewhere)
    refused(".packing is a link", "shard", "synthetic:4", "out", "--split", "random")
    (out / ".packing").unlink()
    (out / ".packing").mkdir()
    (out / ".packing" / "lock").symlink_to(precious)
    refused("cannot be written", "shard", "synthetic:4", "out", "--split", "random")
    assert not list(elsewhere.iterdir()) and precious.read_text() == "precious"


def test_an_export_replaces_a_link(refused, trained_run, precious, tmp_path):
    (tmp_path / "model.pt2").symlink_to(precious)
    (tmp_path / f".model.partial-{os.getpid()}.pt2").symlink_to(precious)
    assert run(umbrella, "petseg", ["export", str(trained_run), "--format", "torch-export", "--out", "model.pt2"]) == 0
    assert precious.read_text() == "precious" and not (tmp_path / "model.pt2").is_symlink()
