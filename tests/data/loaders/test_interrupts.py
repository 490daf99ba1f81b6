"""Whatever breaks off a loop over a loader, what comes after it is right."""

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import petseg.data.loaders as loaders
from tests.data.loaders.interrupted import CONFIGURATIONS, Follower

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("each", [5, pytest.param(90, marks=pytest.mark.slow)])
def test_ctrl_c_at_any_moment_gives_nobody_another_samples_pixels(packed, each):
    """SIGINT to the process group, as terminals and Jupyter send it."""
    rng = random.Random(each)
    command = [sys.executable, "-m", "tests.data.loaders.interrupted", str(packed), str(each)]
    deadline = time.monotonic() + 60 + 2 * each * len(CONFIGURATIONS)
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, bufsize=0
    ) as program:
        said = b""
        try:
            while time.monotonic() < deadline:
                # Now and then the signal's exception comes up in a finaliser, where Python drops it: then once more.
                if not select.select([program.stdout], [], [], 1.0)[0] and said.endswith(b"go\n"):
                    os.killpg(program.pid, signal.SIGINT)
                    continue
                if not (data := os.read(program.stdout.fileno(), 4096)):
                    break
                said += data
                if said.endswith(b"go\n"):
                    time.sleep(rng.uniform(0, 0.03))
                    os.killpg(program.pid, signal.SIGINT)
        finally:
            program.kill()
        errors = program.stderr.read().decode()
    assert said.rpartition(b"caught\n")[2].startswith(b"end"), errors[-3000:]
    _, within, missing = said.split()[-3:]
    interrupts = each * len(CONFIGURATIONS)
    assert 3 * int(within) >= interrupts, f"only {within} of {interrupts} interrupts were inside the loader"
    assert int(missing) <= interrupts


class Boom(BaseException):
    """What is raised in the middle of things."""


class Tracer:
    """Raises `Boom` once at each of `targets`, in turn, and notes the lines of loaders that are reached."""

    FILES = tuple(str(Path(loaders.__file__).with_name(f"{name}.py")) for name in (
        "loader", "cache", "crew", "cpu", "dali", "codec", "encoded"
    ))  # fmt: skip

    def __init__(self):
        self.lines = {}
        self.targets = []

    def __call__(self, frame, event, arg):
        return self.inside if frame.f_code.co_filename in self.FILES else None

    def inside(self, frame, event, arg):
        if event != "line":
            return self.inside
        line = frame.f_code.co_filename, frame.f_lineno
        self.lines.setdefault(line, frame.f_code.co_qualname)
        if self.targets and self.targets[0] == line and not self.leaves_a_with(frame):
            del self.targets[0]
            raise Boom
        return self.inside

    def leaves_a_with(self, frame):
        """Whether a `with` is left at this line, before it has called `__exit__`: no signal's exception comes there."""
        code = Path(frame.f_code.co_filename).read_text().splitlines()[frame.f_lineno - 1].strip()
        if not code.startswith("with "):
            return False
        seen = self.entered = getattr(self, "entered", set())
        here = id(frame), frame.f_lineno
        seen ^= {here}
        return here not in seen


@pytest.mark.parametrize(("way", "cache", "training"), CONFIGURATIONS)
def test_an_exception_at_any_line_loses_nothing(request, packed, way, cache, training):
    every = request.config.getoption("--slow")
    if not every and (cache == "host") == training:
        pytest.skip("slow; ask for it with --slow")
    follower = Follower(way, packed, cache, training)
    tracer = Tracer()

    def epoch():
        sys.settrace(tracer)
        try:
            for batch in follower.loader:
                sys.settrace(None)
                follower.check(batch)
                sys.settrace(tracer)
        except Boom:
            follower.interrupts += 1
        finally:
            sys.settrace(None)

    epoch()
    epoch()
    tried, fired = set(), 0
    while untried := sorted(set(tracer.lines) - tried):
        line = untried[0]
        tried.add(line)
        # What mends something is reached when something is broken.
        breaking = [max(at for at, name in tracer.lines.items() if name.endswith("_take_one"))] if (
            tracer.lines[line].endswith(("_mend", "_pipeline"))
        ) else []  # fmt: skip
        tracer.targets = [*breaking, line]
        if cache == "host":
            follower.loader._engine._store._present[:] = False  # as if it had seen nothing
        for _ in range(6):
            if tracer.targets:
                epoch()
        fired += not tracer.targets
        tracer.targets = []
    for _ in range(2):
        epoch()
    # Who waits where depends on who is faster, so that not every line is reached again.
    assert fired >= 0.75 * len(tried) and fired > 50
    follower.loader.close()
