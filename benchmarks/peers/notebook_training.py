"""The teaching notebook from its files to its updated weights: its Dataset, its DataLoader, its loop."""

from _notebook import DatasetSeg, as_uint8
from _serve import arguments, endless, serve
from _training import memory_mb, network, notebook_loop, settle
from torch.utils.data import DataLoader

from petseg.classes import OXFORD
from petseg.config import resolve

args = arguments()
dataset = DatasetSeg(args.data / "files" / "images", args.data / "files" / "masks", args.size)
loader = DataLoader(dataset, batch_size=args.batch, shuffle=True, num_workers=args.workers)
step = notebook_loop(network(resolve({"recipe": "seed"}), OXFORD))


def learned():
    for images, masks in endless(lambda: loader):
        step(images, masks)
        yield images, masks


serve(
    learned(), "torch", "torchvision", "pillow", as_uint8=as_uint8, settle=settle,
    facts=lambda: {"memory_mb": memory_mb()},
)  # fmt: skip
