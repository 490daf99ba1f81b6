"""How fast a network can be trained at most: by the products that it needs, and by the memory that it moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from petseg.model.networks import Network

BYTES = 2
"""Of a value in bf16."""

_NORM_PASSES = 8
"""Over the values of a normalised layer: two reads and a write forward; backward two reads of two, and a write."""


def roofline_seconds(network: Network, height: int, width: int, *, flops: float, bandwidth: float) -> float:
    """The least time that one training sample takes on the device.

    Each convolution is computed three times (forward, for its input and for its weights), each time bounded by its
    products or by reading and writing its input and output once. Normalisation with its activation, pooling and
    concatenation move memory. Everything in bf16, pointwise work fused into these, weights in the cache; input, loss
    and optimiser are free, so it is a bound that nothing reaches (Williams, Waterman and Patterson, 2009).

    Args:
        network: on any device.
        height: rows of the input.
        width: columns of the input.
        flops: of a bf16 matrix product, a second.
        bandwidth: of memory, read or written, bytes a second.
    """
    import copy

    with torch.device("meta"):
        model = copy.deepcopy(network).to("meta").eval()
        seconds = 0.0

        def look(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            nonlocal seconds
            read, written = inputs[0].numel(), output.numel()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                taps = module.kernel_size[0] * module.kernel_size[1]
                pixels = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
                products = 2 * pixels[:, 0].numel() * module.in_channels * module.out_channels * taps / module.groups
                seconds += 3 * max(products / flops, BYTES * (read + written) / bandwidth)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                seconds += _NORM_PASSES * BYTES * written / bandwidth

        hooks = [module.register_forward_hook(look) for module in model.modules()]
        with _Moved() as moved, torch.no_grad():
            model(torch.empty(1, 3, height, width))
        for hook in hooks:
            hook.remove()
    moves: float = 2 * BYTES * moved.values / bandwidth
    return seconds + moves


class _Moved(torch.overrides.TorchFunctionMode):
    """Counts values that pooling and concatenation read and write; backward they move as many."""

    def __init__(self) -> None:
        super().__init__()
        self.values: int = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "cat":
            self.values += 2 * out.numel()
        elif "max_pool2d" in name and isinstance(out, torch.Tensor):
            self.values += args[0].numel() + out.numel()
        return out
