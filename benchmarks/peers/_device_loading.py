"""Other ways to batches on a device: endless generators of (images, codes)."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
import torch.nn.functional as F


def dali_native(folder, threads, size, batch, device, fancy=False):
    """DALI's webdataset reader, mixed decoder and GPU resize, as its documentation shows them."""
    from nvidia.dali import fn, pipeline_def, types
    from torch.utils.dlpack import from_dlpack

    on_gpu = device.type == "cuda"
    shards = sorted((folder / "shards").glob("*.tar"))
    where = {"device": "mixed"} if on_gpu else {"device": "cpu"}

    @pipeline_def(
        batch_size=batch,
        num_threads=threads,
        device_id=0 if on_gpu else None,
        prefetch_queue_depth=2,
        exec_dynamic=True,
    )
    def pipeline():
        jpegs, pngs = fn.readers.webdataset(
            paths=[str(path) for path in shards], index_paths=[str(path.with_suffix(".idx")) for path in shards],
            ext=["jpg", "png"], random_shuffle=True, initial_fill=512, missing_component_behavior="error",
        )  # fmt: skip
        images = fn.decoders.image(jpegs, output_type=types.RGB, jpeg_fancy_upsampling=fancy, **where)
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
        masks = fn.decoders.image(pngs, device="cpu", output_type=types.GRAY)
        masks = fn.resize(masks, size=[size, size], interp_type=types.INTERP_NN)
        return images, masks.gpu() if on_gpu else masks

    pipe = pipeline()
    pipe.build()
    while True:
        outputs = pipe.run()
        yield [from_dlpack(each.as_tensor()) if on_gpu else np.asarray(each.as_tensor()) for each in outputs]


def torchvision_cuda(folder, threads, size, batch, device):
    """torchvision's batched CUDA decoder, masks by OpenCV in threads, torch's resize."""
    from torchvision.io import decode_jpeg

    if device.type != "cuda":
        raise RuntimeError("it needs a GPU")
    files = folder / "files"
    keys = sorted(path.stem for path in (files / "masks").iterdir())
    pool = ThreadPoolExecutor(threads)

    def read(key):
        jpeg = torch.frombuffer(bytearray((files / "images" / f"{key}.jpg").read_bytes()), dtype=torch.uint8)
        mask = cv2.imread(str(files / "masks" / f"{key}.png"), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        return jpeg, cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)

    def batches():
        ahead = [pool.map(read, part) for part in [keys[:batch], keys[batch : 2 * batch]]]
        for k in itertools.count(2):
            at = k * batch % (len(keys) - batch)
            ahead.append(pool.map(read, keys[at : at + batch]))
            yield list(ahead.pop(0))

    for samples in batches():
        torch.cuda.current_stream().synchronize()  # it may overwrite what queued kernels read (vision 9606)
        images = torch.empty((len(samples), 3, size, size), device=device)
        for row, image in enumerate(decode_jpeg([jpeg for jpeg, _ in samples], device=device)):
            images[row] = F.interpolate(image.unsqueeze(0).float(), (size, size), mode="bilinear", antialias=True)[0]
        yield images.to(torch.uint8), torch.from_numpy(np.stack([mask for _, mask in samples])).to(device)
