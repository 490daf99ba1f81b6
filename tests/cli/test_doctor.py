"""What the machine has: every probe that fails is a row, and none ends the list."""

import io

import pytest
from rich.console import Console

from petseg.cli import doctor
from petseg.cli.doctor import Check, examine, render


def shown(checks: list[Check], width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render(checks))
    return out.getvalue()


def test_everything_is_looked_at():
    checks = {check.name: check for check in examine()}
    for name in (
        "Python",
        "torch",
        "GPU",
        "DALI",
        "nvImageCodec",
        "C++ compiler",
        "usable cores",
        "memory",
        "/dev/shm",
    ):
        assert checks[name].value, name
        assert checks[name].ok in {"yes", "warn", "no"}
    assert checks["DALI"].ok == "yes" and "pipeline runs" in checks["DALI"].value
    assert checks["--device auto"].value in {"cpu", "cuda:0"}


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_table_says_it_all_at_any_width(width):
    checks = [
        Check(name="GPU", ok="no", value="a value [with brackets] " * 5, advice="do this"),
        Check(name="memory", ok="yes", value="23 GiB"),
    ]
    text = shown(checks, width)
    assert "[with" in text and "do this" in text.replace("│", "") and max(map(len, text.splitlines())) <= width


def test_a_probe_that_fails_is_a_row(monkeypatch):
    def broken() -> Check:
        raise RuntimeError("no such driver")

    monkeypatch.setitem(doctor._PROBES, "GPU", broken)
    checks = {check.name: check for check in examine()}
    assert "no such driver" in checks["GPU"].value and checks["GPU"].ok != "yes"
    assert "memory" in checks
