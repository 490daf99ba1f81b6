"""DALI's own webdataset reader, decoders and resize, as its documentation shows them."""

import os

import numpy as np
from _serve import arguments, serve

os.environ.setdefault("DALI_DISABLE_NVML", "1")
from nvidia.dali import fn, pipeline_def, types

args = arguments()
shards = sorted((args.data / "shards").glob("*.tar"))


@pipeline_def(
    batch_size=args.batch, num_threads=args.workers, device_id=None, prefetch_queue_depth=2, exec_dynamic=True
)
def pipeline():
    jpegs, pngs = fn.readers.webdataset(
        paths=[str(path) for path in shards], index_paths=[str(path.with_suffix(".idx")) for path in shards],
        ext=["jpg", "png"], random_shuffle=True, initial_fill=512, missing_component_behavior="error",
    )  # fmt: skip
    images = fn.decoders.image(jpegs, device="cpu", output_type=types.RGB)
    images = fn.resize(images, size=[args.size, args.size], interp_type=types.INTERP_LINEAR, antialias=True)
    masks = fn.decoders.image(pngs, device="cpu", output_type=types.GRAY)
    return images, fn.resize(masks, size=[args.size, args.size], interp_type=types.INTERP_NN)


def stream():
    pipe = pipeline()
    pipe.build()
    while True:
        images, masks = pipe.run()
        yield np.asarray(images.as_tensor()), np.asarray(masks.as_tensor())[..., 0]


serve(stream(), "nvidia-dali-cuda120")
