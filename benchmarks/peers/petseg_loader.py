"""petseg's own loaders and caches, as `petseg-train` uses them."""

import torch
from _serve import arguments, endless, serve

from petseg import build_loader
from petseg.device import resolve_device

args = arguments(("--loader", "webdataset"), ("--cache", "none"), ("--shards", "shards"))
torch.set_num_threads(args.workers)
loader = build_loader(
    args.loader,
    shards=args.data / args.shards,
    split="train",
    device=resolve_device("auto"),
    batch_size=args.batch,
    size=(args.size, args.size),
    training=True,
    num_threads=args.workers,
    cache=args.cache,
)
if args.cache != "none":  # from its second epoch on
    for _ in range(2):
        for _ in loader:
            pass


def settle():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


serve(
    ((batch.images, batch.codes) for batch in endless(lambda: loader)), "petseg", "torch", settle=settle,
    as_uint8=lambda batch: tuple(part.cpu() for part in batch),
)  # fmt: skip
