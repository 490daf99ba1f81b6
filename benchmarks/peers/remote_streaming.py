# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "mosaicml-streaming==0.13.*", "torch>=2.11,<2.16", "simplejpeg==1.9.*", "opencv-python-headless==5.0.*"
# ]
# ///
"""MosaicML Streaming on a store that speaks S3: `--write` makes its shards, else one cold epoch of them is measured."""

import os

import cv2
from _decode import decode
from _remote import arguments, measure
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

args = arguments()
files = args.data / "files"


class Pets(StreamingDataset):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return decode(item["image"], item["mask"], args.size)


def loader():
    dataset = Pets(remote=args.remote, local=str(args.cache), shuffle=True, batch_size=args.batch)
    return DataLoader(dataset, batch_size=args.batch, num_workers=args.workers, drop_last=True)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    if args.write:
        columns = {"image": "bytes", "mask": "bytes"}
        with MDSWriter(out=str(args.write), columns=columns, size_limit="8mb") as writer:
            for image, mask in zip(*(sorted((files / kind).iterdir()) for kind in ("images", "masks")), strict=True):
                writer.write({"image": image.read_bytes(), "mask": mask.read_bytes()})
    else:
        os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
        clean_stale_shared_memory()
        measure(loader)
