"""The teaching notebook's Dataset and its DataLoader (which has no workers)."""

from _notebook import DatasetSeg, as_uint8
from _serve import arguments, endless, serve
from torch.utils.data import DataLoader

args = arguments()
dataset = DatasetSeg(args.data / "files" / "images", args.data / "files" / "masks", args.size)
loader = DataLoader(dataset, batch_size=args.batch, shuffle=True, num_workers=args.workers)
serve(endless(lambda: loader), "torch", "torchvision", "pillow", as_uint8=as_uint8)
