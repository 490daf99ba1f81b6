# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "mosaicml-streaming==0.13.*", "torch>=2.11,<2.16", "simplejpeg==1.9.*", "opencv-python-headless==5.0.*"
# ]
# ///
"""MosaicML Streaming: MDS shards, its StreamingDataset under a torch DataLoader; decoding in `__getitem__`."""

import cv2
from _decode import decode
from _serve import arguments, endless, serve
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

args = arguments()
files = args.data / "files"


class Pets(StreamingDataset):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return decode(item["image"], item["mask"], args.size)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    out = args.scratch / "mds"
    if not (out / "index.json").exists():
        with MDSWriter(out=str(out), columns={"image": "bytes", "mask": "bytes"}) as writer:
            for image, mask in zip(*(sorted((files / kind).iterdir()) for kind in ("images", "masks")), strict=True):
                writer.write({"image": image.read_bytes(), "mask": mask.read_bytes()})
    clean_stale_shared_memory()
    dataset = Pets(local=str(out), shuffle=True, batch_size=args.batch)
    loader = DataLoader(
        dataset, batch_size=args.batch, num_workers=args.workers, persistent_workers=True, drop_last=True
    )
    serve(endless(lambda: loader), "mosaicml-streaming", "torch", "simplejpeg")
