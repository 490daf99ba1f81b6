"""Muon: steps of equal size in every direction for convolution filters, AdamW for all other parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95

LEAST_ROWS = {"cpu": 64, "cuda": 128}
"""Squares of fewer rows are filled up with zeros to this many, and worked on together: a network has filters of five
sizes, and each size would start twenty kernels. Zeros stay zeros. A CPU has no time for more of them."""

# Polar Express (Amsel, Persson, Musco and Gower, 2025), the first four of its steps: the best polynomials of degree 5
# for singular values from 0.001 to 1. Above 1 they explode, so all are widened by a little for rounding, as there.
_WIDER = 1.01
_POLYNOMIALS = tuple(
    (a / _WIDER, b / _WIDER**3, c / _WIDER**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    )
)


def filters_of(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that Muon is for: convolution filters, but the first and the last, and none of one channel."""
    filters = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1]
    return filters[1:-1]


@torch.no_grad()
def whitening(grams: torch.Tensor) -> torch.Tensor:
    """Orthogonalise matrices X: the same singular vectors, with all singular values near 1 (0.4 to 1.6).

    The iteration runs on X Xᵀ alone, a small square however long X is. In fp32, without TF32: what rounding makes of
    eigenvalues near 0 may be negative, and grows. A fifth polynomial would bring the values closer to 1.

    Args:
        grams: f32[N, m, m], X Xᵀ of each.

    Returns:
        f32[N, m, m], to be multiplied with X from the left.
    """
    # The squared Frobenius norm: no singular value is above its root.
    square = (_WIDER**2 * grams.diagonal(dim1=1, dim2=2).sum(1)).clamp(min=1e-30).view(-1, 1, 1)
    gram, found = grams / square, None
    for place, (a, b, c) in enumerate(_POLYNOMIALS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        found = factor if found is None else factor @ found
        if place + 1 < len(_POLYNOMIALS):
            gram = factor @ gram @ factor
    assert found is not None
    return found * square.rsqrt()


class Muon(torch.optim.Optimizer):
    """Momentum whose every step is made orthogonal (Jordan and others, "Muon", 2024); AdamW where that has no meaning.

    torch.optim.Muon takes matrices alone, one by one. Here a filter [out, in, h, w] is a matrix [out, h * w * in], the
    squares of many are worked on together, nothing waits for the device, and fp16's GradScaler can leave a step out.
    Its length is 0.2 * sqrt(longer side of the matrix) of the rate (Liu and others, "Muon is Scalable", 2025), about
    that of AdamW's steps, so both share one rate.

    Args:
        groups: parameter groups with `lr` and `weight_decay`; Muon's own have `"filters": True`.
        capturable: for CUDA graphs; then `lr` is a tensor on the device.
    """

    _step_supports_amp_scaling = True

    def __init__(self, groups: Iterable[dict[str, Any]], *, capturable: bool = False) -> None:
        groups = list(groups)
        # The same groups and states as here: this takes the steps of those that are not filters.
        self._adamw = torch.optim.AdamW(
            [group for group in groups if not group.get("filters")], fused=True, capturable=capturable
        )
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "filters": False, "capturable": capturable})
        self._share()

    def _share(self) -> None:
        self._adamw.param_groups = [group for group in self.param_groups if not group["filters"]]
        self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; fp16's GradScaler says by `found_inf` whether it counts.

        Raises:
            ValueError: a closure was given, which this optimiser does not call.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure")
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:
            self._adamw.found_inf, self._adamw.grad_scale = found_inf, None  # type: ignore[attr-defined]
        try:
            self._adamw.step()
        finally:
            # As GradScaler does with this optimiser's own: a later step may have no scaler.
            if found_inf is not None:
                del self._adamw.found_inf, self._adamw.grad_scale  # type: ignore[attr-defined]
        for group in self.param_groups:
            if group["filters"]:
                self._step_filters(group, found_inf)

    def _step_filters(self, group: dict[str, Any], found_inf: torch.Tensor | None) -> None:
        learning = [p for p in group["params"] if p.grad is not None]
        if not learning:
            return
        grads = [p.grad for p in learning]
        for p in learning:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in learning]
        rate = group["lr"]
        if found_inf is not None:
            # Of a step that does not count, nothing may stay, and nothing may wait for the device to find out.
            grads = [torch.where(found_inf > 0, m, g) for m, g in zip(momenta, grads, strict=True)]
            rate = rate * (1 - found_inf)
        torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(grads, momenta, MOMENTUM)
        torch._foreach_mul_(learning, 1 - rate * group["weight_decay"])
        together: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for p, direction in zip(learning, ahead, strict=True):
            weights, x = _wide_matrices(p, direction)
            together[max(len(x), LEAST_ROWS.get(p.device.type, 1))].append((weights, x))
        for rows, pairs in together.items():
            grams = pairs[0][1].new_zeros(len(pairs), rows, rows)
            with _exact_products():
                for gram, (_, x) in zip(grams, pairs, strict=True):
                    torch.mm(x, x.mT, out=gram[: len(x), : len(x)])
                factors = whitening(grams) * rate
            for (weights, x), factor in zip(pairs, factors, strict=True):
                weights.addmm_(factor[: len(x), : len(x)], x, alpha=-0.2 * x.shape[1] ** 0.5)


@contextmanager
def _exact_products() -> Iterator[None]:
    """On GPUs, fp32 products that are fp32's, and not TF32's."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _wide_matrices(filters: torch.Tensor, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as matrices that are no higher than wide; the first is a view, whichever memory format it has."""
    if not filters.is_contiguous():
        filters, direction = filters.permute(0, 2, 3, 1), direction.permute(0, 2, 3, 1)
    weights, x = filters.view(len(filters), -1), direction.reshape(len(filters), -1)
    return (weights, x) if len(x) <= x.shape[1] else (weights.mT, x.mT)
