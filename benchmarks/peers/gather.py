"""A bare index_select over decoded samples in memory: the ceiling of every cache."""

import numpy as np
import torch
from _serve import arguments, endless, serve

from petseg import build_loader

args = arguments()
torch.set_num_threads(args.workers)
loader = build_loader(
    "webdataset", shards=args.data / "shards", split="train", batch_size=args.batch, size=(args.size, args.size)
)
parts = list(loader)
real = torch.cat([batch.indices for batch in parts]) >= 0
images, codes = (torch.cat([getattr(batch, part) for batch in parts])[real] for part in ("images", "codes"))
loader.close()
rng = np.random.default_rng(0)


def epoch():
    order = torch.from_numpy(rng.permutation(len(images)))
    for chosen in order.split(args.batch):
        if len(chosen) == args.batch:
            yield images.index_select(0, chosen), codes.index_select(0, chosen)


serve(endless(epoch), "torch")
