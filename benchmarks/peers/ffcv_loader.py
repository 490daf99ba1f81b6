# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["ffcv==1.0.2", "numpy>=1.26,<2", "torch>=2.11,<2.16", "torchvision", "opencv-python<4.11"]
#
# [tool.uv.extra-build-dependencies]
# ffcv = ["setuptools<81", "numpy<2"]
# ///
"""FFCV: images as JPEG (`--mode jpg`) or raw, masks as arrays of the size that comes out, its C++ loader and decoders.

Its decoders crop before they resize (here the largest square in the middle), so its images are not the others' images,
and its masks were resized when they were written. Needs Debian's libopencv-dev, libturbojpeg0-dev, pkg-config and g++.
"""

from _serve import arguments, endless, serve

args = arguments(("--mode", "jpg"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from ffcv.fields import NDArrayField, RGBImageField  # noqa: E402
from ffcv.fields.decoders import CenterCropRGBImageDecoder, NDArrayDecoder  # noqa: E402
from ffcv.loader import Loader, OrderOption  # noqa: E402
from ffcv.writer import DatasetWriter  # noqa: E402

files = args.data / "files"
size = (args.size, args.size)


class Pets:
    def __init__(self):
        self.pairs = list(zip(*(sorted((files / kind).iterdir()) for kind in ("images", "masks")), strict=True))

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, mask = self.pairs[index]
        pixels = cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB)
        codes = cv2.resize(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE), size, interpolation=cv2.INTER_NEAREST_EXACT)
        return pixels, codes


if __name__ == "__main__":
    out = args.scratch / f"{args.mode}.beton"
    if not out.exists():
        fields = {
            "image": RGBImageField(write_mode=args.mode, jpeg_quality=90),
            "mask": NDArrayField(np.dtype(np.uint8), size),
        }
        DatasetWriter(str(out), fields, num_workers=1).from_indexed_dataset(Pets())
    pipelines = {"image": [CenterCropRGBImageDecoder(size, ratio=1)], "mask": [NDArrayDecoder()]}
    loader = Loader(
        str(out), batch_size=args.batch, num_workers=args.workers, order=OrderOption.RANDOM, drop_last=True,
        pipelines=pipelines, os_cache=True,
    )  # fmt: skip
    serve(((image.copy(), mask.copy()) for image, mask in endless(lambda: loader)), "ffcv", "torch", "numpy")
