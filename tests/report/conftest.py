"""Drawn runs and panels for the report, and a real browser: headless Chromium, driven over its debugging pipe."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from petseg.classes import OXFORD
from petseg.report import Panel

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


@dataclass
class Seen:
    """What the browser found on a page."""

    png: bytes
    console: list[str]
    requests: list[str]
    evaluated: Any


@dataclass
class Chromium:
    """One browser with one page, spoken to in the DevTools protocol: JSON messages that end in a zero byte."""

    process: subprocess.Popen[bytes]
    out: int
    into: int
    session: str = ""
    number: int = 0
    buffer: bytes = b""
    events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, timeout: float = 30, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.out, data) :]
        end = time.monotonic() + timeout
        while True:
            answer = self._receive(end)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, event: str, timeout: float = 30) -> None:
        end = time.monotonic() + timeout
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self._receive(end))

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.into], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium did not answer in time"
            more = os.read(self.into, 1 << 20)
            assert more, "Chromium ended"
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def look(self, page: Path, *, width: int, script: str, dark: bool = False, scale: float = 1) -> Seen:
        """Open a page at a viewport of `width` px; the whole of it as PNG, and what `script` evaluates to."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for("Page.loadEventFired")
        self.call("Runtime.evaluate", expression="document.fonts.ready", awaitPromise=True)
        evaluated = self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")
        png = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        console, requests = [], []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Network.requestWillBeSent":
                requests.append(parameters["request"]["url"])
            elif event.get("method") in {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}:
                console.append(json.dumps(parameters))
        return Seen(png=base64.b64decode(png), console=console, requests=requests, evaluated=evaluated)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A running headless Chromium. Without one installed the test is skipped, but not in CI."""
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        reason = "no Chromium found; install it to see the report in a browser (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    profile = tmp_path_factory.mktemp("chromium")
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()
    # Chromium wants its ends at 3 and 4; first out of the way of both, or one copy would run over the other.
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser)]

    def place() -> None:
        for fd, wanted in zip(ends, (3, 4), strict=True):
            os.dup2(fd, wanted)

    process = subprocess.Popen(
        [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=place,  # noqa: PLW1509 - it calls nothing but dup2, which no lock can hold up
        close_fds=False,
        start_new_session=True,
    )
    for fd in (to_browser, from_browser, *ends):
        os.close(fd)
    browser = Chromium(process=process, out=from_us, into=to_us)
    try:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            browser.call(f"{domain}.enable")
        yield browser
        browser.session = ""
        browser.call("Browser.close")
        process.wait(10)
    finally:
        # The session of its own holds every helper process that Chromium started, and nothing else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        os.close(from_us)
        os.close(to_us)


def metrics(quality: float) -> dict[str, Any]:
    iou = {"pet": 0.851 * quality, "background": 0.913 * quality, "border": 0.51 * quality}
    return {
        "loss": 1.5 - quality,
        "mean_iou": 0.758 * quality,
        "iou": iou,
        "dice": 0.84 * quality,
        "dice_per_class": {name: 2 * v / (1 + v) for name, v in iou.items()},
        "pixel_accuracy": 0.913 * quality,
        "class_accuracy": iou,
        "precision": iou,
        "confusion": [[851, 100, 49], [60, 913, 27], [300, 190, 510]],
        "foreground_iou": {"{1}": 0.851 * quality, "{1,3}": 0.911 * quality},
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder; `summary` overrides values, `config` replaces the whole."""

    def make(*, name: str = "20260102-030405-unet", epochs: int = 4, config: Any = None, summary: Any = None) -> Path:
        run = tmp_path / name
        run.mkdir()
        (run / "resolved.toml").write_text(
            tomli_w.dumps(config or {"recipe": "default", "batch_size": 32, "lr": 0.002})
        )
        records = [
            {
                "epoch": epoch + 1, "train_loss": 1.6 - epoch / epochs, "lr": 0.001 * (epoch + 1),
                "val": metrics(1 - 0.5 ** (epoch + 1)), "images_per_s": 118.0 + epoch, "data_wait_pct": 31.0,
                "memory_mb": 812.0, "seconds": 14.2, "samples": 2048,
            }
            for epoch in range(epochs)
        ]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        content = {
            **metrics(1), "split": "test", "samples": 998, "images_per_s": 120.6, "data_wait_pct": 31.0,
            "epochs": epochs, "best_epoch": epochs, "seconds": 131.5, "loader": "dali", "device": "cpu (2 threads)",
            "amp": "off", "compile": "off", "peak_memory_mb": 812.0,
            "verdict": {"kind": "loader-bound", "why": "31% of the time was waiting", "option": "--cache host"},
            "time": {"data": 31.0, "compute": 69.0, "evaluation": 20.0, "other": 11.5}, "parameters": 7_763_523,
            "baseline_mean_iou": 0.195, "versions": {"torch": "2.15.0"}, "data_digest": "f" * 64,
        } | (summary or {})  # fmt: skip
        (run / "summary.json").write_text(json.dumps(content))
        return run

    return make


@pytest.fixture
def panels() -> Callable[..., list[Panel]]:
    """Draw panels: a disc with a rim before noise, predicted a little beside the truth."""

    def draw(n: int, *, classes: int = len(OXFORD), size: tuple[int, int] = (97, 133), key: str = "") -> list[Panel]:
        rng = np.random.default_rng(0)
        rows, columns = np.indices(size)
        found = []
        for i in range(n):
            distance = np.hypot(rows - size[0] * (0.4 + 0.02 * (i % 8)), columns - size[1] / 2)
            truth = np.where(distance < 25, 0, np.where(distance < 30, classes - 1, 1))
            # Blotches of 8 px: noise in every pixel would make images several times larger than images are.
            blotches = rng.normal(0, 0.35, (classes, size[0] // 8 + 1, size[1] // 8 + 1))
            noise = blotches.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]]
            levels = np.stack([truth == c for c in range(classes)]) + noise
            image = np.clip(240 - 3 * distance[..., None] + rng.normal(0, 8, (*size, 3)), 0, 255).astype(np.uint8)
            probabilities = np.exp(4 * levels)
            found.append(
                Panel(
                    key=key or f"drawn_{i}", image=image, truth=truth,
                    probabilities=(probabilities / probabilities.sum(0)).astype(np.float32),
                    iou=0.3 + 0.05 * ((i * 5) % 12),
                )
            )  # fmt: skip
        return found

    return draw
