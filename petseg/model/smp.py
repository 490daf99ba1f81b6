"""Networks of segmentation_models.pytorch (the extra `smp`), by the names that they have there."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from petseg.errors import PetsegError
from petseg.model.freezing import Freezable
from petseg.model.padding import pad_to_multiple

PREFIX = "smp:"


class SmpNetwork(Freezable):
    """A network of segmentation_models.pytorch for images of any size.

    Args:
        arch: `smp:ARCH:ENCODER`, such as `smp:Unet:resnet34` or `smp:FPN:tu-convnext_tiny`.
        classes: output channels.

    Raises:
        PetsegError: the library is missing, lacks one of the names, or cannot combine them.

    Examples:
        >>> SmpNetwork("smp:Unet:resnet18", classes=3)(torch.zeros(1, 3, 97, 133)).shape
        torch.Size([1, 3, 97, 133])
    """

    HEAD = "module.segmentation_head."

    def __init__(self, arch: str, *, classes: int) -> None:
        super().__init__()
        self.name, self.classes = arch, classes
        self.module = create(arch, classes)
        # A Dense Prediction Transformer halves its tokens once more.
        self.stride = int(self.module.encoder.output_stride) * (2 if _is_dpt(arch) else 1)

    @property
    def encoder(self) -> nn.Module:
        """The part that can be pretrained; its parameters are those of `state_dict` under `module.encoder`."""
        encoder: nn.Module = self.module.encoder
        return encoder

    def encoder_parts(self) -> tuple[nn.Module, ...]:
        """The encoder."""
        return (self.encoder,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits f[N, classes, H, W] of images f[N, 3, H, W]; H and W need not be multiples of the stride."""
        x, (height, width) = pad_to_multiple(x, self.stride)
        logits: torch.Tensor = self.module(x)
        return logits[..., :height, :width]

    @staticmethod
    def probabilities(outputs: torch.Tensor) -> torch.Tensor:
        """Class probabilities f32[N, C, H, W], summing to 1, of the network's outputs."""
        return outputs.float().softmax(dim=1)

    def freeze_unused(self, height: int, width: int) -> None:
        """Stop parameters on which the output does not depend (stages that the decoder skips) from learning.

        DistributedDataParallel would wait for their gradients.
        """
        trial = self._try_batch(height, width, 2)
        for mine, tried in zip(self.parameters(), trial.parameters(), strict=True):
            mine.requires_grad_(mine.requires_grad and tried.grad is not None)

    def check(self, height: int, width: int, batch_size: int) -> None:
        """Try one training batch, on the device `meta` where nothing is computed.

        Raises:
            PetsegError: the network does not take it.
        """
        try:
            self._try_batch(height, width, max(batch_size, 1))
        except Exception as error:  # each architecture and each encoder has its own
            raise PetsegError(
                f"--arch {self.name}: it does not take batches of {batch_size} images of {height}x{width} px "
                f"({_first_line(error)}); give another --size or --batch-size."
            ) from error

    def _try_batch(self, height: int, width: int, batch_size: int) -> nn.Module:
        """A copy on `meta` that has been through a step, with gradients as empty as its weights where there are any."""
        with torch.device("meta"):
            trial = copy.deepcopy(self).to("meta").train()
            trial(torch.empty(batch_size, 3, height, width)).sum().backward()
        return trial


def create(arch: str, classes: int, weights: str | None = None) -> Any:
    """The library's own network for `smp:ARCH:ENCODER`, its encoder with random weights or with those named `weights`.

    Raises:
        PetsegError: as for `SmpNetwork`, or no such weights, or they cannot be had.
    """
    smp = _library(arch)
    _, name, encoder = arch.split(":")
    architectures = {cls.lower(): cls for cls in dir(smp) if cls.lower() in smp.MODEL_ARCHITECTURES_MAPPING}
    if name.lower() not in architectures:
        raise PetsegError(f"--arch {arch}: {_unknown('architecture', name, architectures.values())}.")
    _check_encoder(smp, arch, encoder)
    if weights is not None and (native := smp.encoders.encoders.get(encoder)):
        known = native["pretrained_settings"]
        if weights not in known:
            raise PetsegError(f"--encoder-weights: {_unknown(f'weights of {encoder}', weights, known)}.")
    # A Dense Prediction Transformer takes only its encoder's own size unless it is told to interpolate positions.
    options = {"dynamic_img_size": True} if _is_dpt(arch) else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names of timm's that will be others one day
            return smp.create_model(name, encoder, encoder_weights=weights, classes=classes, **options)
    except OSError as error:  # what the hub raises without a network
        raise PetsegError(
            f"--encoder-weights {weights}: they could not be fetched ({_first_line(error)}); give a FILE instead."
        ) from error
    except Exception as error:  # a combination that some layer refuses
        raise PetsegError(f"--arch {arch}: the library cannot build it ({_first_line(error)}).") from error


def _library(arch: str) -> Any:
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise PetsegError(
            f"--arch {arch} needs segmentation_models.pytorch ({error}): pip install 'petseg[smp]'."
        ) from error
    return smp


def _check_encoder(smp: Any, arch: str, encoder: str) -> None:
    import timm

    if encoder.startswith("tu-"):
        name = encoder.removeprefix("tu-").split(".")[0]
        if not timm.is_model(name):
            known = [f"tu-{model}" for model in timm.list_models()]
            raise PetsegError(
                f"--arch {arch}: {_unknown('encoder', encoder, known)}, or another of timm.list_models()."
            )
    elif encoder not in smp.encoders.encoders:
        known = smp.encoders.encoders
        raise PetsegError(
            f"--arch {arch}: {_unknown('encoder', encoder, known)}; any model of timm's goes as tu-NAME too."
        )


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    return f"unknown {what} '{name}'; " + (
        f"near it are {', '.join(near)}" if near else f"there are {', '.join(known[:12])}"
    )


def _is_dpt(arch: str) -> bool:
    return arch.lower().startswith(f"{PREFIX}dpt:")


def _first_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return text.splitlines()[0] if text else type(error).__name__
