"""Transfer of weights from one run to another, whose classes may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from petseg.classes import ClassTable
from petseg.errors import OptionError
from petseg.model.build import load_weights
from petseg.model.networks import Network, OwnNetwork

Head = Literal["auto", "keep", "new"]


def take_over(
    network: Network,
    weights: dict[str, torch.Tensor],
    path: Path,
    *,
    source: ClassTable,
    target: ClassTable,
    head: Head,
) -> str:
    """Put the weights of another run into a network.

    Args:
        network: to be changed, with `target`'s classes.
        weights: the other run's.
        path: where they come from, for messages.
        source: the classes that they tell apart.
        target: those that the network is to tell apart.
        head: `keep` takes the last layers too, `new` leaves them as they are; `auto` keeps them for the same classes
            and leaves them for another number of classes.

    Returns:
        A sentence if the head starts anew, else nothing.

    Raises:
        PetsegError: as many classes, but others, and `auto` cannot tell whether they mean the same; the head of as many
            classes is to be kept and there are not; or weights of another architecture.
    """
    if head == "auto":
        if len(source) == len(target) and (source.codes, source.names) != (target.codes, target.names):
            raise OptionError(
                "init_from",
                f"{path} has the classes {_listed(source)}, and these shards {_listed(target)}: give --init-head keep "
                "if these are the same classes, else --init-head new.",
            )
        head = "keep" if len(source) == len(target) else "new"
    if head == "keep":
        if len(source) != len(target):
            raise OptionError(
                "init_head",
                f"{path} has {len(source)} classes and these shards {len(target)}; give new, or leave it out.",
            )
        load_weights(network, weights, path)
        return ""
    own = network.state_dict()
    anew = _head_of(network, own, weights)
    if not anew:
        raise OptionError(
            "init_head",
            "petseg cannot tell which layers of your own network are its head: reset them yourself, and give keep.",
        )
    body = {name: value for name, value in weights.items() if name not in anew}
    load_weights(network, {**body, **{name: own[name] for name in anew if name in own}}, path)
    return f"The network starts from {path}, but its head has new weights, for {len(target)} classes."


def _head_of(network: Network, own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors of the last layers, on either side."""
    if not isinstance(network, OwnNetwork):
        return {name for name in (*own, *weights) if name.startswith(network.HEAD)}
    # In a custom network: those that are of another number of classes.
    return {
        name
        for name, value in own.items()
        if name in weights
        and value.ndim
        and value.shape != weights[name].shape
        and value.shape[1:] == weights[name].shape[1:]
    }


def _listed(classes: ClassTable) -> str:
    pairs = [f"{name} ({code})" for code, name in zip(classes.codes, classes.names, strict=True)]
    return ", ".join(pairs[:4]) + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")
