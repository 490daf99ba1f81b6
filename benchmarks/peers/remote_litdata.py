# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "litdata==0.2.76", "torch>=2.11,<2.16", "simplejpeg==1.9.*", "opencv-python-headless==5.0.*", "boto3>=1.35"
# ]
# ///
"""LitData on a store that speaks S3: `--write` makes its chunks, else one cold epoch of them is measured."""

import os

import cv2
import litdata
from _decode import decode
from _remote import arguments, measure
from litdata.streaming import downloader

downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # or it refuses the server of this benchmark
args = arguments()
files = args.data / "files"


def sample(pair):
    image, mask = pair
    return {"image": open(image, "rb").read(), "mask": open(mask, "rb").read()}


class Pets(litdata.StreamingDataset):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return decode(item["image"], item["mask"], args.size)


def loader():
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    dataset = Pets(args.remote, shuffle=True, drop_last=True, cache_dir=str(args.cache), storage_options=options)
    return litdata.StreamingDataLoader(dataset, batch_size=args.batch, num_workers=args.workers, drop_last=True)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    if args.write:
        pairs = list(zip(*(sorted(map(str, (files / kind).iterdir())) for kind in ("images", "masks")), strict=True))
        litdata.optimize(fn=sample, inputs=pairs, output_dir=str(args.write), chunk_bytes="8MB", num_workers=1)
    else:
        measure(loader)
