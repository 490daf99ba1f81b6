"""webdataset as its documentation sets it up (shards to workers, shuffle buffer, WebLoader), with libjpeg-turbo."""

import cv2
import numpy as np
import simplejpeg
import webdataset as wds
from _serve import arguments, endless, serve

args = arguments()
size = (args.size, args.size)


def decode(sample):
    image = cv2.resize(simplejpeg.decode_jpeg(sample["jpg"], fastdct=True, fastupsample=True), size)
    mask = cv2.imdecode(np.frombuffer(sample["png"], np.uint8), cv2.IMREAD_GRAYSCALE)
    return image, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def one_thread(_):
    cv2.setNumThreads(1)


shards = [str(path) for path in sorted((args.data / "shards").glob("*.tar"))]
dataset = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).map(decode).batched(args.batch)
loader = wds.WebLoader(
    dataset, batch_size=None, num_workers=args.workers, persistent_workers=True, worker_init_fn=one_thread
)
serve(endless(lambda: loader), "webdataset", "torch", "simplejpeg", "opencv-python-headless")
