"""torchvision's own OxfordIIITPet and its v2 transforms under a DataLoader, as its documentation shows them."""

import os

import torch
from _serve import arguments, endless, serve
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import OxfordIIITPet
from torchvision.transforms import v2

args = arguments()
root = args.scratch / "oxford-iiit-pet"
if not root.exists():  # its layout, by links
    (root / "annotations").mkdir(parents=True)
    os.symlink((args.data / "files" / "images").absolute(), root / "images")
    os.symlink((args.data / "files" / "masks").absolute(), root / "annotations" / "trimaps")
    keys = sorted(path.stem for path in (args.data / "files" / "images").iterdir())
    (root / "annotations" / "trainval.txt").write_text("".join(f"{key} 1 1 1\n" for key in keys))

resize = v2.Compose([v2.ToImage(), v2.Resize((args.size, args.size), antialias=True)])


def both(image, mask):
    return resize(image, tv_tensors.Mask(v2.functional.pil_to_tensor(mask)))


dataset = OxfordIIITPet(args.scratch, target_types="segmentation", transforms=both)
loader = DataLoader(
    dataset, batch_size=args.batch, shuffle=True, num_workers=args.workers, persistent_workers=True, drop_last=True
)


def as_uint8(batch):
    images, masks = batch
    return images.permute(0, 2, 3, 1), masks[:, 0]


torch.set_num_threads(1)
serve(endless(lambda: loader), "torchvision", "torch", "pillow", as_uint8=as_uint8)
