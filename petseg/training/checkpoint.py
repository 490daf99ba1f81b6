"""Writing checkpoints, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from petseg.errors import PetsegError
from petseg.inference.trained import FORMAT
from petseg.system import write_atomic


def save_checkpoint(path: Path, data: dict[str, Any]) -> None:
    """Write tensors and plain data under `path`, whole or not at all.

    Raises:
        PetsegError: the disk is full or the folder read-only.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **data}, buffer)
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise PetsegError(
            f"{path} could not be written ({error.strerror}): free some space, or choose another --run-dir."
        ) from error
