"""Runs in a store: their checkpoint is brought to this machine, and kept."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from petseg.data.objects import Objects, is_remote
from petseg.data.shards.shardcache import default_folder
from petseg.errors import PetsegError
from petseg.run.folder import BEST
from petseg.system import write_atomic


def local_run(run: Path | str) -> Path:
    """A run folder or checkpoint on this machine; of one in a store, a folder that holds its best checkpoint.

    It is fetched again when it has another ETag, or when the store gives none.

    Args:
        run: run folder or checkpoint, or the address of one.

    Raises:
        PetsegError: the store cannot be read, or holds no such run.
    """
    if not is_remote(run):
        return Path(run).expanduser()
    address = str(run).rstrip("/")
    parent, _, last = address.rpartition("/")
    base, name = (parent, last) if last.endswith(".pt") else (address, BEST)
    objects = Objects(base)
    folder = default_folder().with_name("runs") / hashlib.sha256(base.encode()).hexdigest()[:32]
    file, stamp = folder / name, folder / f"{name}.etag"
    meta = objects.head(name)
    with contextlib.suppress(OSError):
        if meta.etag and stamp.read_text() == meta.etag and file.stat().st_size == meta.size:
            return file
    content = objects.get(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        write_atomic(file, content)
        write_atomic(stamp, (meta.etag or "").encode())
    except OSError as error:
        raise PetsegError(f"{file} cannot be written ({error.strerror}).") from error
    return file
