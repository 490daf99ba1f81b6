"""What the device can do at most: products of two square matrices, one a sample."""

import torch
from _serve import arguments, serve

args = arguments(("--dtype", "float32"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
side = 8192 if DEVICE.type == "cuda" else 4096
torch.backends.cuda.matmul.allow_tf32 = True
a, b = (torch.randn(side, side, device=DEVICE).to(getattr(torch, args.dtype)) for _ in range(2))


def products():
    while True:
        torch.mm(a, b)
        yield [0], [0]


serve(
    products(),
    "torch",
    settle=torch.cuda.synchronize if DEVICE.type == "cuda" else None,
    facts=lambda: {"gflop_a_product": 2 * side**3 / 1e9},
)
