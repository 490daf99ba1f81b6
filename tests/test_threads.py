import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petseg import threads
from petseg.cores import Usage
from petseg.system import runnable_cores
from petseg.threads import ComputeThreads, threads_beside

pytestmark = pytest.mark.skipif(Usage.now() is None, reason="this system does not say what its cores do")

BURN = "import os, time\nprint(os.getpid(), flush=True)\nend = time.time() + 60\nwhile time.time() < end: pass"


@contextmanager
def other_programs(count):
    """Programs that keep a core busy each, and were not started by this process."""
    numbers = []
    try:
        for _ in range(count):
            # It is not a child of ours: setsid forks, and ends at once.
            command = ["setsid", "-f", sys.executable, "-c", BURN]
            shell = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            numbers.append(int(shell.stdout.readline()))
            shell.wait()
        yield
    finally:
        for number in numbers:
            os.kill(number, 9)


def until(condition, threads, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        threads.look()
        time.sleep(0.01)
    return condition()


@given(
    others=st.floats(0, 300),
    cores=st.integers(1, 256),
    share=st.floats(0.01, 1),
)
def test_they_fit_into_what_is_free(others, cores, share):
    allowed = max(1, int(share * cores))
    number = threads_beside(others, cores, allowed)
    assert max(1, allowed // 4) <= number <= allowed
    assert number <= max(1, allowed // 4, cores - others + 0.5)
    assert threads_beside(0.0, cores, allowed) == allowed


def test_others_are_seen_and_ones_own_children_are_not():
    before = Usage.now()
    with other_programs(1):
        time.sleep(1.0)
        assert Usage.now().others_since(before) > 0.4
    own = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE)
    try:
        own.stdout.readline()
        before = Usage.now()
        time.sleep(1.0)
        after = Usage.now()
    finally:
        own.kill()
        own.wait()
    assert after.own - before.own > 0.4
    assert after.busy - before.busy - 1.5 * (after.at - before.at) < after.others_since(before) < 0.6


def test_ones_own_children_are_not_others_once_they_have_ended():
    """Packing has processes too: they had ended when the demo's training asked what others do."""
    before = Usage.now()
    burn = "import time; end = time.process_time() + 1.0\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    after = Usage.now()
    assert after.own - before.own > 0.9
    assert after.others_since(before) < 0.5


@pytest.mark.skipif(len(runnable_cores()) < 2, reason="there is nothing to give up")
@pytest.mark.slow
def test_threads_give_way_to_other_programs_and_come_back(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "LOOK_EVERY_S", 0.5)
    notes = []
    before = torch.get_num_threads()
    with ComputeThreads(note=notes.append) as compute:
        compute.follow()
        most = compute.most
        with other_programs(len(runnable_cores())):
            assert until(lambda: torch.get_num_threads() <= max(1, most // 2), compute)
        assert until(lambda: torch.get_num_threads() == most, compute)
    assert torch.get_num_threads() == before
    assert len(notes) == 1 and "--compute-threads" in notes[0], "it is said once, however often it changes"


def test_a_number_that_was_asked_for_is_kept(monkeypatch):
    monkeypatch.setattr(threads, "LOOK_EVERY_S", 0.05)
    before = torch.get_num_threads()
    with ComputeThreads(3, note=pytest.fail) as compute, other_programs(len(runnable_cores())):
        compute.follow()
        assert not until(lambda: torch.get_num_threads() != 3, compute, seconds=0.5)
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    with ComputeThreads(note=pytest.fail) as compute, other_programs(len(runnable_cores())):
        compute.follow()
        assert not until(lambda: torch.get_num_threads() != before, compute, seconds=0.5)
    assert torch.get_num_threads() == before


def test_a_quota_bounds_them(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    with ComputeThreads() as compute:
        assert (compute.most, torch.get_num_threads()) == (1, 1)
