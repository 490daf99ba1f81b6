"""A disk that is full or read-only, then has room again: a tmpfs in a mount namespace of its own.

Run as a program inside `unshare --map-root-user --mount`; prints what it saw as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CASES: dict[str, tuple[str, list[str]]] = {
    "shard": ("250k", ["shard", "synthetic:60", "{disk}/out", "--short-side", "96", "--samples-per-shard", "8",
                       "--split", "random", "--workers", "2"]),
    "train": ("1500k", ["train", "--shards", "{shards}", "--run-dir", "{disk}/run", "--size", "32", "--width", "8",
                        "--depth", "4", "--batch-size", "4", "--epochs", "3", "--device", "cpu", "--amp", "off",
                        "--compile", "off", "--gallery", "2", "--auto-resume"]),
}  # fmt: skip
"""Name of a case: size of a disk that is too small for it (but not for its beginning), and the command."""


def try_disk(name: str, disk: Path, shards: Path) -> dict[str, Any]:
    """One case: read-only, too small, and then with room.

    Args:
        name: of `CASES`.
        disk: folder to mount on.
        shards: packed data for trainings.

    Returns:
        Of each of the three tries the exit code, the standard error, and the files on the disk afterwards.
    """
    size, words = CASES[name]
    command = [word.format(disk=disk, shards=shards) for word in words]
    seen: dict[str, Any] = {}
    _mount(["-t", "tmpfs", "-o", f"size={size},ro", "petseg", str(disk)])
    for state, options in (("read-only", None), ("full", f"remount,rw,size={size}"), ("room", "remount,size=64m")):
        if options:
            _mount(["-o", options, str(disk)])
        done = subprocess.run(
            [sys.executable, "-m", "petseg", *command], capture_output=True, text=True, check=False, timeout=120
        )
        files = {str(path.relative_to(disk)): path.stat().st_size for path in disk.rglob("*") if path.is_file()}
        seen[state] = {"code": done.returncode, "err": done.stderr, "files": files}
    return seen


def _mount(words: list[str]) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


if __name__ == "__main__":
    print(json.dumps(try_disk(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
