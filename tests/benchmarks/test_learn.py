"""The learn benchmark: its arithmetic, and every contender for a moment."""

import pytest

from benchmarks import learn
from benchmarks.harness import ContenderError, Row
from petseg.data.sources.synthetic import SyntheticSource


def row(line, seconds, *samples, name=None, kind="petseg"):
    facts = {"chart": "Learning", "kind": kind, "line": line, "seconds": seconds}
    return Row(name=name or f"{line}, {seconds:g}", unit="mean IoU", samples=list(samples), facts=facts)


def test_seconds_to_a_score_lie_on_straight_lines_between_medians():
    rows = [row("a", 100.0, 0.5, 0.4, 0.6), row("a", 200.0, 0.7, 0.7, 0.1), row("b", 50.0, 0.2)]
    assert learn.seconds_to(0.6, rows, "a") == pytest.approx(150.0)
    assert learn.seconds_to(0.25, rows, "a") == pytest.approx(50.0), "a line from nothing at no time"
    assert learn.seconds_to(0.6, rows, "b") is None and learn.seconds_to(0.6, rows, "c") is None


def test_ratios_are_scores_at_shares_of_t_and_a_quotient_of_times():
    ours, theirs = learn.DEFAULT.name, learn.SMP.name
    rows = [
        row(ours, 60.0, 0.58, 0.6, 0.62, name=f"{ours}, 0.25 T"),
        row(ours, 120.0, 0.65, 0.66, 0.67, name=f"{ours}, 0.5 T"),
        row(ours, 240.0, 0.7, name=f"{ours}, 1 T"),
        row(theirs, 300.0, 0.6, kind="library"),
    ]
    found = learn.ratios(rows)
    assert found == {"at_half_t": 0.66, "at_t": 0.7, "at_one_and_a_half_t": None, "seconds_to_060": 5.0}
    assert learn.ratios(rows[1:3])["seconds_to_060"] is None


def test_a_contender_that_cannot_run_says_why(tmp_path):
    with pytest.raises(ContenderError, match="shards"):
        learn.run_entry(learn.DEFAULT, tmp_path, 0, 5.0)


@pytest.mark.slow
def test_every_contender_learns_for_a_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "WORK", tmp_path)
    monkeypatch.setattr(learn, "NOTEBOOK_EPOCHS", 1)
    data = learn.prepare(SyntheticSource(40, 3))  # three times one epoch: a quarter would not be enough to start
    assert learn.prepare(SyntheticSource(40, 3)) == data, "it is kept"
    ((clock, rows),) = learn.run_all(
        data, learn.ENTRIES, seeds=[0], marks=(3.0,), minutes=0.0, progress=lambda name: None
    )
    assert clock > 0 and not any(row.note for row in rows)
    at_all_marks = {entry.name for entry in learn.ENTRIES if not entry.marks}
    assert {row.facts["line"] for row in rows} == {learn.NOTEBOOK.name, *at_all_marks}
    assert all(0 <= value <= 1 for row in rows for value in row.samples)
