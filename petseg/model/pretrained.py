"""Pretrained weights for the encoder of an `SmpNetwork`, with the channel statistics that they expect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from petseg.errors import PetsegError
from petseg.model.smp import SmpNetwork, create

Weights = Mapping[str, torch.Tensor]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Channel means and deviations in 0-1 that torchvision's ImageNet networks expect."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "state_dict_ema", "model", "encoder")
"""Keys under which training scripts put a network's weights into a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """What came with an encoder's weights."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sentence: str
    """For the person who asked for them: where weights and statistics came from."""


def statistics_of(module: nn.Module) -> tuple[list[float], list[float]] | None:
    """Channel means and deviations of a custom network's training, if it names them as timm's do."""
    for part in (module, *(getattr(module, name, None) for name in ("encoder", "backbone", "model"))):
        known = getattr(part, "pretrained_cfg", None) or getattr(part, "default_cfg", None)
        if isinstance(known, dict) and {"mean", "std"} <= known.keys():
            return list(_three(known["mean"])), list(_three(known["std"]))
    return None


def is_file(source: str) -> bool:
    """Whether `--encoder-weights` means a file, and not a name from the library."""
    return "/" in source or Path(source).suffix in _SUFFIXES or Path(source).is_file()


def absolute_source(source: str) -> str:
    """`--encoder-weights` as it is understood from any folder."""
    return str(Path(source).expanduser().absolute()) if source and is_file(source) else source


def load_encoder(network: SmpNetwork, source: str) -> Pretrained:
    """Put pretrained weights into the encoder of a network.

    A file's tensors are matched by name; where its names are of another library, by their order, if all shapes and
    kinds (`weight`, `running_mean`, ...) agree. A classifier at its end is left out.

    Args:
        network: to be changed.
        source: name of segmentation_models.pytorch for this encoder, such as `imagenet`, or a file of
            PyTorch's or of safetensors.

    Raises:
        PetsegError: no such weights, they cannot be read, or they do not fit; the network is as it was.
    """
    if is_file(source):
        return _from_file(network, Path(source).expanduser())
    fetched = create(network.name, network.classes, weights=source)
    network.encoder.load_state_dict(fetched.encoder.state_dict())
    mean, std = _of_library(network, source)
    return Pretrained(mean=mean, std=std, sentence=f"The encoder begins with its weights '{source}'.")


def _of_library(network: SmpNetwork, source: str) -> Any:
    import segmentation_models_pytorch as smp

    known = smp.encoders.get_preprocessing_params(_encoder_name(network), pretrained=source)
    if known["input_space"] != "RGB":
        raise PetsegError(
            f"--encoder-weights {source}: these expect {known['input_space']} images, and petseg loads RGB."
        )
    top = known["input_range"][1]
    return tuple(value / top for value in known["mean"]), tuple(value / top for value in known["std"])


def _from_file(network: SmpNetwork, path: Path) -> Pretrained:
    found = _read(path)
    wanted = {name: value for name, value in network.encoder.state_dict().items() if value.ndim}
    matched, how = _by_name(wanted, found), "by name"
    if matched is None:
        matched, how = _by_order(wanted, found, path), "by order and shape"
    network.encoder.load_state_dict(matched, strict=False)
    mean, std, whose = _statistics(network, path)
    return Pretrained(
        mean=mean,
        std=std,
        sentence=f"The encoder begins with the weights of {path} ({len(matched)} tensors, matched {how}), its images "
        f"with the channel statistics of {whose}: mean {_short(mean)}, deviation {_short(std)}.",
    )


def _read(path: Path) -> Weights:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            data: Any = load_file(path)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise PetsegError(f"--encoder-weights: no such file: {path}.") from None
    except OSError as error:
        raise PetsegError(f"--encoder-weights: {path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # damaged bytes lead an unpickler to raise nearly anything
        raise PetsegError(
            f"--encoder-weights: {path} is damaged, or holds more than tensors: save only the network's state_dict()."
        ) from error
    while isinstance(data, dict) and (inner := next((k for k in _WRAPPERS if isinstance(data.get(k), dict)), None)):
        data = data[inner]
    tensors = {k: v for k, v in data.items() if isinstance(v, torch.Tensor)} if isinstance(data, dict) else {}
    if not tensors:
        raise PetsegError(f"--encoder-weights: {path} holds no tensors by name: save the network's state_dict() there.")
    return tensors


def _by_name(wanted: Weights, found: Weights) -> dict[str, torch.Tensor] | None:
    """The tensors of the same names under some common prefix on either side, None if one lacks or differs in shape."""
    # A network of timm's stands one level deeper in the library's encoder, where `stages.0` is `stages_0`.
    theirs = {name.replace("_", "."): value for name, value in found.items()}
    for cut in ("", "model."):
        names = {name: name.removeprefix(cut).replace("_", ".") for name in wanted}
        first = next(iter(names.values()))
        for prefix in {name.removesuffix(first) for name in theirs if name.endswith(first)}:
            matched = {name: theirs.get(prefix + other) for name, other in names.items()}
            if all(value is not None and value.shape == wanted[name].shape for name, value in matched.items()):
                return cast(dict[str, torch.Tensor], matched)
    return None


def _by_order(wanted: Weights, found: Weights, path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        raise PetsegError(
            f"--encoder-weights: the names in {path} are not those of this encoder, and a safetensors file has no "
            "order to go by: give the weights of the encoder that --arch names."
        )
    theirs = [(name, value) for name, value in found.items() if value.ndim]
    for (name, value), (other, given) in zip(wanted.items(), theirs, strict=False):
        if value.shape != given.shape or name.split(".")[-1] != other.split(".")[-1]:
            raise PetsegError(
                f"--encoder-weights: {path} is of another encoder: where this one has {name} {list(value.shape)}, it "
                f"has {other} {list(given.shape)}; give the weights of the encoder that --arch names."
            )
    if len(theirs) < len(wanted):
        raise PetsegError(
            f"--encoder-weights: {path} is of a smaller encoder: it ends after {len(theirs)} of {len(wanted)} tensors; "
            "give the weights of the encoder that --arch names."
        )
    return {name: given for name, (_, given) in zip(wanted, theirs, strict=False)}


def _statistics(network: SmpNetwork, path: Path) -> tuple[Any, Any, str]:
    """Means and deviations, and whose they are: config.json beside the file, timm's for the encoder, or ImageNet's."""
    config = path.with_name("config.json")
    try:
        known = json.loads(config.read_text("utf-8"))
        known = known.get("pretrained_cfg", known)
        mean, std = _three(known["mean"]), _three(known["std"])
        return mean, std, str(config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not every folder has one, nor is every one a network's
    import timm

    name = _encoder_name(network)
    registered = timm.models.get_pretrained_cfg(name.removeprefix("tu-").removeprefix("timm-"))
    if registered is not None:
        return _three(registered.mean), _three(registered.std), f"timm's {name.removeprefix('tu-')}"
    return (*IMAGENET, "ImageNet")


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _encoder_name(network: SmpNetwork) -> str:
    return network.name.split(":")[2]


def _short(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
