"""Trained networks, and the reading of checkpoints: nothing that they hold is ever run."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.data.decode.rgb import AS_IT_IS, Tones
from petseg.errors import PetsegError
from petseg.inference.choices import amp_dtype
from petseg.model.networks import Network, OwnNetwork, build_model
from petseg.model.transform import InputTransform

FORMAT = 2
"""Version of the checkpoints that this petseg writes and reads."""

BEST, LAST = "best.pt", "last.pt"

STAGED = "best.pt.next"
"""A new best checkpoint, until the last one that belongs to it is written."""


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
        raise PetsegError(f"{path} is damaged or no checkpoint of petseg's; use another one of the run.") from error
    if not isinstance(data, dict) or "format" not in data or "config" not in data:
        raise PetsegError(f"{path} is no checkpoint of petseg's.")
    if not isinstance(data["format"], int):
        raise PetsegError(f"{path} is no checkpoint of petseg's.")
    if data["format"] != FORMAT:
        what = "newer" if data["format"] > FORMAT else "older"
        how = "upgrade petseg" if data["format"] > FORMAT else "train again, or use the petseg that wrote it"
        raise PetsegError(f"{path} has format {data['format']}, {what} than this petseg's {FORMAT}: {how}.")
    return data


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
        zipfile.BadZipFile: it is no zip file.
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
    raise PetsegError(f"{run} holds no {BEST} and no {LAST}: it is no run folder, or nothing was saved yet.")


def is_committed(run: Path) -> bool:
    """Whether the last checkpoint of a run speaks of the best one that is staged beside it.

    A run that is killed between the two leaves a staged checkpoint that never counted, or one that only lacks its name.
    """
    try:
        last, staged = load_checkpoint(run / LAST), load_checkpoint(run / STAGED)
        return bool(last["progress"]["best"]["epoch"] == staged["epoch"])
    except (PetsegError, KeyError, TypeError):
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A trained network and what its inputs and outputs mean."""

    network: Network
    """In evaluation mode, with the averaged weights where there are any, fp32."""
    transform: InputTransform
    """From u8[N, H, W, 3] to the network's input, on its device."""
    classes: ClassTable
    config: TrainConfig
    path: Path
    """The checkpoint that it came from."""
    decode_policy: str
    """How the pictures that it learned from were decoded, such as `fancy-upsampling`."""
    tones: Tones = AS_IT_IS
    """What became of pictures of more than 8 bits or three bands when they were packed."""

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor, amp: str = "off") -> torch.Tensor:
        """Class probabilities f32[N, C, H, W] of images u8[N, H, W, 3], RGB, both on the network's device.

        The network computes in the mixed precision `amp`: `bf16`, `fp16` or `off`.
        """
        dtype = amp_dtype(amp)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            outputs = self.network(self.transform(images))
        return self.network.probabilities(outputs)

    def mirrored(self) -> TrainedModel:
        """The same, but answering with the mean of a picture's and its mirror image's probabilities, in twice the time.

        Test-time augmentation by flips (Krizhevsky et al., 2012, section 4.1).
        """
        return replace(self, network=OwnNetwork(_Mirrored(self.network)).eval())


class _Mirrored(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logarithms of probabilities, which are logits that softmax leaves as they are."""
        here, there = (self.network.probabilities(self.network(images)) for images in (x, x.flip(3)))
        mean = (here + there.flip(3)) / 2
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def load_trained(run: Path, device: torch.device, *, network: nn.Module | None = None, **changes: Any) -> TrainedModel:
    """The network of a run folder (its best checkpoint) or of a checkpoint file.

    Args:
        run: run folder or checkpoint.
        device: where the network is put.
        network: to put the weights into, where the run trained one of somebody's own.
        changes: options of its configuration that are to be others.

    Raises:
        PetsegError: see `load_checkpoint` and `checkpoint_path`; or an option that makes no sense.
    """
    path = checkpoint_path(run)
    data = load_checkpoint(path)
    try:
        config = TrainConfig(**{**data["config"], **changes})
        classes = ClassTable.from_dict(data["classes"])
        chosen = network_for(config, classes, network)
        load_weights(chosen, data["ema"] or data["model"], path)
        transform = transform_for(config, data["mean"], data["std"])
        tones = Tones.from_dict(data.get("tones", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PetsegError(f"{path} is damaged ({error}); use another checkpoint of the run.") from error
    return TrainedModel(
        network=chosen.eval().requires_grad_(False).to(device),
        transform=transform.to(device),
        classes=classes,
        config=config,
        path=path,
        decode_policy=str(data.get("decode_policy", "")),
        tones=tones,
    )


def network_for(config: TrainConfig, classes: ClassTable, own: nn.Module | None = None) -> Network:
    """The network that a configuration describes, freshly initialised, or somebody's own; in its memory format.

    Raises:
        PetsegError: a network of one's own where the configuration describes another, or none where it needs one.
    """
    network: Network
    if own is not None:
        if config.arch != "own":
            raise PetsegError(f"network: this run has the network '{config.arch}'; leave your own out.")
        network = own if isinstance(own, OwnNetwork) else OwnNetwork(own)
    else:
        network = build_model(
            config.arch,
            classes=len(classes),
            width=config.width,
            depth=config.depth,
            max_width=config.max_width,
            dropout=config.dropout,
            norm=config.norm,
            upsample=config.upsample,
            stem=config.stem,
        )
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return network.to(memory_format=memory_format)


def transform_for(config: TrainConfig, mean: Sequence[float], std: Sequence[float]) -> InputTransform:
    """The input transform that belongs to `network_for`, with channel statistics f32[3] in 0-1."""
    return InputTransform(mean, std, apply=config.normalise, channels_last=config.channels_last)


def load_weights(network: Network, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put weights into a network.

    Raises:
        PetsegError: they are of another architecture.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise PetsegError(
            f"{path} is of another architecture than --arch, --width, --depth, --max-width, --stem, --norm and "
            "--upsample describe: give the options of the run that it came from."
        ) from error
