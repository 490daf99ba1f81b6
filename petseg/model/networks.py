"""Networks: `UNet`, made for channels_last and mixed precision, the notebook's `SeedUNet`, and one of your own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from petseg.errors import PetsegError
from petseg.model.freezing import Freezable
from petseg.model.gradients import dense_gradient
from petseg.model.padding import pad_to_multiple
from petseg.model.smp import PREFIX, SmpNetwork

Norm = Literal["batch", "group"]
Upsample = Literal["transpose", "bilinear"]


class UNet(Freezable):
    """U-Net after Ronneberger, Fischer and Brox (MICCAI 2015), with padding, normalisation and any input size.

    Level i has min(width * 2**i, max_width) channels and two 3x3 convolutions; the default, which is
    petseg-train's, is 1.3 million parameters.

    Args:
        classes: output channels.
        width: channels of the first level.
        depth: number of levels, the bottom included; the input is halved `depth - 1` times.
        max_width: most channels of a level; nnU-Net has 512 too (Isensee et al., Nature Methods 18, 2021).
        dropout: probability with which whole channels are dropped in the two deepest levels, 0 to 1.
        norm: BatchNorm, or GroupNorm (8 channels a group or fewer groups), which does not depend on the batch.
        upsample: 2x2 transposed convolution, or bilinear enlargement with a 1x1 convolution.
        stem: side in pixels of the squares that are folded into channels before the first level, and unfolded in the
            logits (Shi et al., CVPR 2016): with 2, every level works at half the size, for a third of the time.
        head_width: channels of a 3x3 convolution before the logits; 0 for none; -1 for as many as there are logits to a
            square, at most `max_width`, where those are more than `width`: a few channels can tell few classes apart.

    Examples:
        >>> UNet(classes=3, width=8, depth=3)(torch.zeros(1, 3, 97, 133)).shape
        torch.Size([1, 3, 97, 133])
    """

    HEAD = "head."
    """Prefix of the names of the last layers' weights."""

    def __init__(
        self,
        *,
        classes: int = 3,
        width: int = 16,
        depth: int = 5,
        max_width: int = 128,
        dropout: float = 0.0,
        norm: Norm = "batch",
        upsample: Upsample = "transpose",
        stem: int = 2,
        head_width: int = -1,
    ) -> None:
        super().__init__()
        channels = [min(width * 2**level, max_width) for level in range(depth)]
        self.stride = stem * 2 ** (depth - 1)
        self.fold = stem
        self.stem = _conv(3 * stem**2, width, norm) if stem > 1 else nn.Identity()
        self.down = nn.ModuleList(
            _double_conv(below, here, norm, dropout if level >= depth - 2 else 0.0)
            for level, (below, here) in enumerate(zip([width if stem > 1 else 3, *channels], channels, strict=False))
        )
        self.up = nn.ModuleList(
            _upsampling(deep, shallow, upsample)
            for deep, shallow in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.merge = nn.ModuleList(_double_conv(2 * here, here, norm, 0.0) for here in channels[-2::-1])
        logits = classes * stem**2
        if head_width < 0:
            head_width = min(logits, max_width) if logits > channels[0] else 0
        wide = _conv(channels[0], head_width, norm) if head_width else nn.Identity()
        for module in (*self.modules(), *wide.modules()):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # He et al., ICCV 2015: keeps the variance through ReLU layers.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Torch's own initialisation: with weights near zero, many classes take a hundred steps to part.
        last = nn.Conv2d(head_width or channels[0], logits, 1)
        self.head = nn.Sequential(wide, last) if head_width else last

    def encoder_parts(self) -> tuple[nn.Module, ...]:
        """Everything down to the bottom."""
        return self.stem, self.down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits f[N, classes, H, W] of images f[N, 3, H, W]; H and W need not be multiples of the stride."""
        x, (height, width) = pad_to_multiple(x, self.stride)
        if self.fold > 1:
            x = self.stem(F.pixel_unshuffle(x, self.fold))
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        logits: torch.Tensor = self.head(x)
        if self.fold > 1:
            logits = F.pixel_shuffle(logits, self.fold)
        return logits[..., :height, :width]

    @staticmethod
    def probabilities(outputs: torch.Tensor) -> torch.Tensor:
        """Class probabilities f32[N, C, H, W], summing to 1, of the network's outputs."""
        return outputs.float().softmax(dim=1)


class SeedUNet(Freezable):
    """The notebook's network, layer for layer: 64-128-256, 2,174,089 parameters for 3 classes.

    Every convolution, the transposed ones and the last one too, is followed by ReLU and then by BatchNorm with momentum
    0.01. A sigmoid comes last; the notebook gave its output to cross-entropy as if it were logits. Modules stand in
    the notebook's order, so weights can be taken over by position. Only the padding to a multiple of 4 px is added.
    """

    stride = 4
    HEAD = "head."

    def __init__(self, *, classes: int = 3) -> None:
        super().__init__()
        self.down1 = nn.Sequential(_seed_conv(3, 64), _seed_conv(64, 64))
        self.down2 = nn.Sequential(_seed_conv(64, 128), _seed_conv(128, 128))
        self.bottom = nn.Sequential(_seed_conv(128, 256), _seed_conv(256, 256))
        self.up2 = _seed_upsampling(256, 128)
        self.merge2 = _seed_conv(256, 128)
        self.up1 = _seed_upsampling(128, 64)
        self.merge1 = _seed_conv(128, 64)
        self.head = _seed_conv(64, classes)

    def encoder_parts(self) -> tuple[nn.Module, ...]:
        """Everything down to the bottom."""
        return self.down1, self.down2, self.bottom

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sigmoid outputs f[N, classes, H, W] in 0-1 of images f[N, 3, H, W]."""
        x, (height, width) = pad_to_multiple(x, self.stride)
        skip1 = self.down1(x)
        skip2 = self.down2(F.max_pool2d(skip1, 2))
        x = self.bottom(F.max_pool2d(skip2, 2))
        # What comes back from a concatenation is a slice, and from the loss in the other memory format: there a GPU's
        # BatchNorm in bf16 would fall back on kernels for any strides.
        x = self.merge2(torch.cat([dense_gradient(self.up2(x)), skip2], dim=1))
        x = self.merge1(torch.cat([dense_gradient(self.up1(x)), skip1], dim=1))
        outputs: torch.Tensor = dense_gradient(self.head(x)).sigmoid()
        return outputs[..., :height, :width]

    @staticmethod
    def probabilities(outputs: torch.Tensor) -> torch.Tensor:
        """The outputs themselves in f32: one sigmoid a class, which need not sum to 1."""
        return outputs.float()


class OwnNetwork(nn.Module):
    """A custom network.

    Args:
        module: from images f[N, 3, H, W] to logits f[N, classes, H, W], or to a dict that holds them as `out`.
    """

    stride = 1

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.has_unused = False
        """Whether some parameters have no part in the output, which DistributedDataParallel has to know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits f[N, classes, H, W] of images f[N, 3, H, W]."""
        outputs = self.module(x)
        logits: torch.Tensor = outputs["out"] if isinstance(outputs, dict) else outputs
        return logits

    @staticmethod
    def probabilities(outputs: torch.Tensor) -> torch.Tensor:
        """Class probabilities f32[N, C, H, W], summing to 1, of the network's outputs."""
        return outputs.float().softmax(dim=1)

    def check(self, classes: int, height: int, width: int, batch_size: int) -> None:
        """Try a copy of it on one image, and on a training batch of two, or of one where no more are to come.

        Raises:
            PetsegError: it does not take images of this size, its outputs are not logits of `classes` classes, or it
                cannot learn from batches of this size.
        """
        trial = copy.deepcopy(self)
        device = next(self.parameters(), torch.zeros(())).device
        rows = min(batch_size, 2)
        with torch.random.fork_rng(devices=[]):  # its dropout draws, and the run's numbers are to be the same
            try:
                with torch.no_grad():
                    found = list(trial.eval()(torch.zeros(1, 3, height, width, device=device)).shape)
            except Exception as error:  # anything may go wrong in there
                raise PetsegError(f"network: it does not take images of {height}x{width} px ({error}).") from error
            if found != (wanted := [1, classes, height, width]):
                raise PetsegError(f"network: its outputs are {found}, and {wanted} are wanted.")
            try:
                trial.train()(torch.zeros(rows, 3, height, width, device=device)).sum().backward()
            except Exception as error:  # BatchNorm over one value, for one
                more = "; give a larger --batch-size" if rows == 1 else ""
                raise PetsegError(
                    f"network: it cannot learn from batches of {rows} images of {height}x{width} px ({error}){more}."
                ) from error
        self.has_unused = any(p.requires_grad and p.grad is None for p in trial.parameters())


Network = UNet | SeedUNet | SmpNetwork | OwnNetwork


def build_model(arch: str, *, classes: int, **unet: Any) -> Network:
    """The network that `--arch` names; `unet` are options of `UNet`, and the others have none.

    Raises:
        PetsegError: an unknown name, `own`, which only its owner can build, or see `SmpNetwork`.
    """
    if arch.startswith(PREFIX):
        return SmpNetwork(arch, classes=classes)
    if arch == "seed":
        return SeedUNet(classes=classes)
    if arch == "unet":
        return UNet(classes=classes, **unet)
    if arch == "own":
        raise PetsegError(
            "this run's network is yours, so no command can build it: from Python give it as `network` to "
            "petseg.train, load, predict, evaluate, export or write_report."
        )
    raise PetsegError(f"--arch: unknown network '{arch}'; choose unet, seed or smp:ARCH:ENCODER.")


def check_size(network: Network, height: int, width: int, batch_size: int = 0) -> None:
    """Refuse an input that would shrink to nothing on the way down.

    Args:
        network: to be trained or used.
        height: rows of its input.
        width: columns of its input.
        batch_size: samples of a training batch; 0 where nothing is trained.

    Raises:
        PetsegError: a side is smaller than the network's stride, or BatchNorm would see one value a channel.
    """
    if min(height, width) < network.stride:
        raise PetsegError(
            f"--size {height}x{width}: this network halves its input down to 1/{network.stride} and needs at least "
            f"{network.stride} px a side; give a larger --size{' or a smaller --depth' * isinstance(network, UNet)}."
        )
    if isinstance(network, SmpNetwork):
        network.check(height, width, batch_size)
        return
    bottom = -(-height // network.stride) * -(-width // network.stride)
    if batch_size * bottom == 1 and any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise PetsegError(
            f"--size {height}x{width} --batch-size 1: BatchNorm at the bottom of this network would see one value a "
            "channel; give a larger --size or --batch-size, a smaller --depth, or --norm group."
        )


@contextmanager
def evaluating(network: Network) -> Iterator[Network]:
    """A network in evaluation mode; the mode that it was in comes back at the end."""
    was_training = network.training
    network.eval()
    try:
        yield network
    finally:
        network.train(was_training)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _normalisation(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    groups = next(g for g in range(max(channels // 8, 1), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _conv(below: int, here: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(below, here, 3, padding=1, bias=False), _normalisation(norm, here), nn.ReLU(inplace=True)
    )


def _double_conv(below: int, here: int, norm: Norm, dropout: float) -> nn.Sequential:
    layers = [*_conv(below, here, norm), *_conv(here, here, norm)]
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


def _upsampling(deep: int, shallow: int, kind: Upsample) -> nn.Module:
    if kind == "transpose":
        return nn.ConvTranspose2d(deep, shallow, 2, stride=2)
    # The 1x1 convolution first: it commutes with the enlargement and costs a quarter there.
    return nn.Sequential(nn.Conv2d(deep, shallow, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))


def _seed_conv(below: int, here: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(below, here, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(here, momentum=0.01)
    )


def _seed_upsampling(below: int, here: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(below, here, 4, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(here, momentum=0.01),
    )
