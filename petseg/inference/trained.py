"""Trained networks."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.data.decode.rgb import AS_IT_IS, Tones
from petseg.device import amp_dtype
from petseg.model.build import load_weights, network_for, transform_for
from petseg.model.networks import Network, OwnNetwork
from petseg.model.transform import InputTransform
from petseg.run.checkpoint import damaged, read_saved


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
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

    def __repr__(self) -> str:
        return f"TrainedModel({str(self.path)!r}, {self.config.arch}, {self.classes}, size {self.config.size})"

    @property
    def scores_whole_pictures(self) -> bool:
        """Whether its run scored pictures at their own size, as it learned from crops or padded pictures."""
        return self.config.fit in {"pad", "crop"}

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
        network: whose copy takes the weights, where the run trained one of somebody's own.
        changes: options of its configuration that are to be others.

    Raises:
        PetsegError: see `read_saved`; or weights of another network.
    """
    saved = read_saved(run, **changes)
    # A copy: what is frozen and moved here stays as it is for whoever brought it along.
    chosen = network_for(saved.config, saved.classes, copy.deepcopy(network))
    try:
        load_weights(chosen, saved.weights, saved.path)
        transform = transform_for(saved.config, saved.mean, saved.std)
        tones = Tones.from_dict(saved.tones)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(saved.path, error) from error
    return TrainedModel(
        network=chosen.eval().requires_grad_(False).to(device),
        transform=transform.to(device),
        classes=saved.classes,
        config=saved.config,
        path=saved.path,
        decode_policy=saved.decode_policy,
        tones=tones,
    )
