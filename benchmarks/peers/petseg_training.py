"""petseg's training as a run of it has it: the loader alone, the step alone, or both."""

import torch
from _serve import arguments, endless, serve
from _training import DEVICE, EPOCH, memory_mb, petseg_step, settle

from benchmarks.noise import NoiseEngine
from petseg import build_loader
from petseg.config import resolve
from petseg.data.loaders.loader import Loader
from petseg.data.shards.manifest import Manifest
from petseg.training.telemetry import Clock

args = arguments(
    ("--recipe", "default"), ("--loader", "webdataset"), ("--cache", "none"), ("--part", "both")
)  # fmt: skip
config = resolve(
    {"recipe": args.recipe, "size": str(args.size), "batch_size": args.batch, "compile": "off"}
)  # fmt: skip
manifest = Manifest.load(args.data / "shards")
loader = build_loader(
    args.loader,
    shards=args.data / "shards",
    split="train",
    batch_size=config.batch_size,
    size=config.height_width,
    device=DEVICE,
    training=True,
    cache=args.cache,
)
if args.cache != "none":  # from its second epoch on
    for _ in loader:
        pass
if args.part == "step":  # what it makes of batches that cost nothing
    noise = NoiseEngine(batch_size=config.batch_size, device=DEVICE, codes=manifest.classes.codes, seed=0)
    loader = Loader(loader.plan, manifest.classes, config.height_width, DEVICE, noise)
batches = endless(lambda: loader)
clock = Clock()


def parts():
    step = None if args.part == "loader" else petseg_step(config, manifest.classes, manifest.mean, manifest.std)
    while True:
        with clock.measure("data"):
            batch = next(batches)
        if step:
            with clock.measure("compute"):
                step(batch, EPOCH)
        yield batch.images, batch.codes


def facts():
    made = {"data_wait_pct": clock.data_wait_pct(), "memory_mb": memory_mb()}
    clock.seconds.update(dict.fromkeys(clock.seconds, 0.0))
    return made


serve(
    parts(), "petseg", "torch", settle=settle, facts=facts,
    as_uint8=lambda batch: tuple(torch.as_tensor(each).cpu() for each in batch),
)  # fmt: skip
