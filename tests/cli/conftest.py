"""What tests of commands share."""

import pytest

from petseg.cli.app import run, umbrella


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands write into the working directory: give each test one of its own, and a wide terminal."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def petseg(capsys):
    """Runs `petseg ARGS`; returns (exit code, standard output, standard error)."""

    def call(*args):
        code = run(umbrella, "petseg", [str(a) for a in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
