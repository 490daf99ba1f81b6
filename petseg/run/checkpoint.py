"""Checkpoints: written, sealed with a hash, and read without running anything that they hold."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.errors import PetsegError
from petseg.run.folder import BEST, LAST, STAGED, RunFolder, cannot_write
from petseg.system import replace_durably, write_atomic

FORMAT = 2
"""Version of the checkpoints that this petseg writes and reads."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU with `weights_only=True`.

    Raises:
        PetsegError: no such file, damaged, not petseg's, or of another format.
    """
    try:
        written = path.read_bytes()
        _check_whole(written)
        data = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise PetsegError(f"no such checkpoint: {path}.") from None
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # damaged bytes lead an unpickler to raise nearly anything
        raise PetsegError(f"{path} is damaged or not a petseg checkpoint; use another one of the run.") from error
    if not isinstance(data, dict) or "format" not in data or "config" not in data:
        raise PetsegError(f"{path} is not a petseg checkpoint.")
    if not isinstance(data["format"], int):
        raise PetsegError(f"{path} is not a petseg checkpoint.")
    if data["format"] != FORMAT:
        what = "newer" if data["format"] > FORMAT else "older"
        how = "upgrade petseg" if data["format"] > FORMAT else "train again, or use the petseg that wrote it"
        raise PetsegError(f"{path} has format {data['format']}, {what} than this petseg's {FORMAT}: {how}.")
    return data


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """The sections about the network that every checkpoint has."""

    path: Path
    config: TrainConfig
    classes: ClassTable
    weights: dict[str, torch.Tensor]
    """The averaged ones where there are any."""
    mean: list[float]
    std: list[float]
    decode_policy: str
    """How the images that it learned from were decoded, such as `fancy-upsampling`."""
    class_weights: tuple[float, ...] | None
    """Of the classes in its loss, in their order."""
    tones: dict[str, Any]
    """What became of images of more than 8 bits or three bands, as `Tones` has it."""


def read_saved(run: Path, **changes: Any) -> Saved:
    """The network of a run folder (its best checkpoint) or of a checkpoint file.

    Args:
        run: run folder or checkpoint.
        changes: options of its configuration that are to be others.

    Raises:
        PetsegError: see `load_checkpoint` and `checkpoint_path`; or an option that makes no sense.
    """
    path = checkpoint_path(run)
    data = load_checkpoint(path)
    try:
        return Saved(
            path=path,
            config=TrainConfig.recorded({**data["config"], **changes}),
            classes=ClassTable.from_dict(data["classes"]),
            weights=data["ema"] or data["model"],
            mean=[float(value) for value in data["mean"]],
            std=[float(value) for value in data["std"]],
            decode_policy=str(data.get("decode_policy", "")),
            class_weights=tuple(map(float, weights)) if (weights := data.get("class_weights")) else None,
            tones=dict(data.get("tones", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> PetsegError:
    """The sentence for a checkpoint that holds something else than it should."""
    return PetsegError(f"{path} is damaged ({error}); use another checkpoint of the run.")


def sealed(archive: bytes) -> bytes:
    """A zip file with the SHA-256 of its bytes as its comment.

    torch.load looks at no checksum: bits that flipped inside a tensor would be taken for weights, and some in the
    archive's directory leave a tensor empty.
    """
    body = memoryview(archive)[:-_LENGTH]
    return b"".join((body, _SEAL.to_bytes(_LENGTH, "little"), _seal_of(body)))


_SEAL, _LENGTH = 64, 2
"""Bytes of the comment, and of its length before it, with which a zip file ends."""


def _seal_of(body: memoryview) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _check_whole(data: bytes) -> None:
    """Check the seal.

    Raises:
        ValueError: something was altered, or there is none.
        zipfile.BadZipFile: it is not a zip file.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if archive.comment != _seal_of(memoryview(data)[: -_SEAL - _LENGTH]):
            raise ValueError("its bytes are not those that were written")


def checkpoint_path(run: Path) -> Path:
    """The checkpoint that RUN means: RUN itself if it is a file, else its best one, else its last one.

    Raises:
        PetsegError: there is none.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise PetsegError(f"no such run: {run}; give the folder that petseg-train wrote, or a .pt file in it.")
    for candidate in (run / STAGED, run / BEST, run / LAST):
        if candidate.is_file() and (candidate.name != STAGED or is_committed(run)):
            return candidate
    raise PetsegError(f"{run} holds no {BEST} and no {LAST}: it is not a run folder, or nothing was saved yet.")


def is_committed(run: Path) -> bool:
    """Whether the last checkpoint of a run speaks of the best one that is staged beside it.

    A run that is killed between the two leaves a staged checkpoint that never counted, or one that only lacks its name.
    """
    try:
        last, staged = load_checkpoint(run / LAST), load_checkpoint(run / STAGED)
        return bool(last["progress"]["best"]["epoch"] == staged["epoch"])
    except (PetsegError, KeyError, TypeError):
        return False


def save_checkpoint(path: Path, data: dict[str, Any]) -> None:
    """Write tensors and plain data under `path`, whole or not at all.

    Raises:
        PetsegError: the disk is full or the folder read-only.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **data}, buffer)
    try:
        write_atomic(path, sealed(buffer.getvalue()))
    except OSError as error:
        raise cannot_write(path, error) from error


def save_run(run: Path, described: dict[str, Any], sections: dict[str, Any], best: dict[str, Any] | None) -> None:
    """Save a run: its last checkpoint and, where there is a better one than before, the best.

    The best one is staged first; the renaming of the last one commits both. Killed at any moment, the two belong
    together (`settle_best`).

    Args:
        run: run folder.
        described: weights, configuration, classes.
        sections: what a run needs beside that to be resumed, one for each part with a state.
        best: as `described`, of the best epoch so far, and its `epoch` (from 1); None where it is saved already.

    Raises:
        PetsegError: the disk is full or the folder read-only; the checkpoints before are as they were.
    """
    if best is not None:
        save_checkpoint(run / STAGED, best)
    save_checkpoint(run / LAST, {**described, **sections})
    if best is not None:
        try:
            replace_durably(run / STAGED, run / BEST)
        except OSError as error:
            raise cannot_write(run / BEST, error) from error


def settle_best(run: Path) -> None:
    """Finish what a killed `save_run` began: a staged best checkpoint gets its name, or goes."""
    staged = run / STAGED
    if not staged.is_file():
        return
    try:
        if is_committed(run):
            replace_durably(staged, run / BEST)
        else:
            staged.unlink()
    except OSError as error:
        raise cannot_write(run / BEST, error) from error


def load_training_state(run: RunFolder) -> dict[str, Any]:
    """The last checkpoint of a run, with the sections `step`, `loader` and `progress`.

    Raises:
        PetsegError: damaged, or a checkpoint without a training state, such as a copy of the best one.
    """
    path = run.last
    data = load_checkpoint(path)
    try:
        return {**data, **{name: data[name] for name in ("model", "step", "loader", "progress")}}
    except (KeyError, TypeError) as error:
        raise PetsegError(
            f"{path} has no training state ({error} is missing), so the run cannot be resumed from it: {BEST} holds "
            "only weights; start a new run with --init-from."
        ) from error
