"""Trained networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.data.decode.rgb import AS_IT_IS, Tones
from petseg.device import amp_dtype
from petseg.errors import OptionError
from petseg.model.build import load_weights, network_for, objective_for, transform_for
from petseg.model.losses import Objective
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
    """How the images that it learned from were decoded, such as `fancy-upsampling`."""
    class_weights: tuple[float, ...] | None = None
    """Of the classes in its loss, in their order."""
    tones: Tones = AS_IT_IS
    """What became of images of more than 8 bits or three bands when they were packed."""

    def __repr__(self) -> str:
        return f"TrainedModel({str(self.path)!r}, {self.config.arch}, {self.classes}, size {self.config.size})"

    def objective(self) -> Objective:
        """The loss of its run, on the network's device; cross-entropy in place of a custom loss."""
        return objective_for(self.config, self.class_weights).to(self.transform.mean.device)

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
        """The same, but answering with the mean of an image's and its mirror images' probabilities.

        Test-time augmentation by flips (Krizhevsky et al., 2012, section 4.1): those that it was trained with, left and
        right or top and bottom, in twice the time, or in four times for both.

        Raises:
            PetsegError: it was trained with neither.
        """
        columns, rows = ([(), (3,)] if self.config.hflip else [()]), ([(), (2,)] if self.config.vflip else [()])
        flips = [(*one, *other) for one in columns for other in rows]
        if len(flips) == 1:
            raise OptionError(
                "tta", f"{self.path} was trained without mirror images, so there is nothing to average; leave it out."
            )
        return replace(self, network=OwnNetwork(_Mirrored(self.network, flips)).eval())


class _Mirrored(nn.Module):
    def __init__(self, network: Network, flips: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.network = network
        self._flips = flips

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logarithms of probabilities, which are logits that softmax leaves as they are."""
        every = [self.network.probabilities(self.network(x.flip(dims))).flip(dims) for dims in self._flips]
        mean = sum(every[1:], every[0]) / len(every)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def load_trained(run: Path, device: torch.device, *, network: nn.Module | None = None, **changes: Any) -> TrainedModel:
    """The network of a run folder (its best checkpoint) or of a checkpoint file.

    Args:
        run: run folder or checkpoint.
        device: where the network is put.
        network: the custom network of the run, if it had one; a copy of it takes the weights.
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
        class_weights=saved.class_weights,
        tones=tones,
    )
