"""One training step on batches that lie on the device: the notebook's loop, changes to it, or petseg's step."""

import torch
from _serve import arguments, serve
from _training import DEVICE, EPOCH, memory_mb, network, notebook_loop, petseg_step, settle

from petseg.classes import OXFORD
from petseg.config import resolve
from petseg.data.loaders.loader import Batch
from petseg.training.auto import training_flops

args = arguments(("--recipe", "seed"), ("--changes", ""), ("--loop", "notebook"), ("--compile", "off"))
config = resolve(
    {"recipe": args.recipe, "size": str(args.size), "batch_size": args.batch, "compile": args.compile}
)  # fmt: skip
shape = (args.batch, args.size, args.size)
drawn = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=drawn)
codes = torch.randint(1, 4, shape, dtype=torch.uint8, generator=drawn)
gflop = training_flops(network(config, OXFORD), args.size, args.size) / 1e9
first = []


def notebook():
    step = notebook_loop(network(config, OXFORD), tuple(filter(None, args.changes.split(","))))
    floats = (images.permute(0, 3, 1, 2).contiguous() / 255).to(DEVICE)
    one_hot = torch.stack([codes == code for code in OXFORD.codes], 1).to(DEVICE, torch.float32)
    torch.manual_seed(1)
    while True:
        loss = step(floats, one_hot)
        if not first:
            first.append(loss)
        yield images, codes


def petseg():
    step = petseg_step(config, OXFORD, (0.48, 0.45, 0.40), (0.26, 0.26, 0.27))
    batch = Batch(images.to(DEVICE), codes.to(DEVICE), torch.arange(args.batch, device=DEVICE), OXFORD)
    while True:
        step(batch, EPOCH)
        if not first:
            first.append(step.mean_loss())
        yield images, codes


def facts():
    return {"first_loss": first[0], "gflop_an_image": gflop, "memory_mb": memory_mb()}


serve(notebook() if args.loop == "notebook" else petseg(), "torch", settle=settle, facts=facts)
