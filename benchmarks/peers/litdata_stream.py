# /// script
# requires-python = ">=3.11"
# dependencies = ["litdata==0.2.76", "torch>=2.11,<2.16", "simplejpeg==1.9.*", "opencv-python-headless==5.0.*"]
# ///
"""LitData: `optimize` once, then its StreamingDataset and StreamingDataLoader; decoding in `__getitem__`."""

import cv2
import litdata
from _decode import decode
from _serve import arguments, endless, serve

args = arguments()
files = args.data / "files"


def sample(pair):
    image, mask = pair
    return {"image": open(image, "rb").read(), "mask": open(mask, "rb").read()}


class Pets(litdata.StreamingDataset):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return decode(item["image"], item["mask"], args.size)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    out = args.scratch / "optimized"
    if not (out / "index.json").exists():
        pairs = list(zip(*(sorted(map(str, (files / kind).iterdir())) for kind in ("images", "masks")), strict=True))
        litdata.optimize(fn=sample, inputs=pairs, output_dir=str(out), chunk_bytes="64MB", num_workers=1)
    dataset = Pets(str(out), shuffle=True, drop_last=True)
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=args.batch, num_workers=args.workers, persistent_workers=True, drop_last=True
    )
    serve(endless(lambda: loader), "litdata", "torch", "simplejpeg")
