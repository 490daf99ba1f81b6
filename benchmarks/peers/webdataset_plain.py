"""webdataset as its documentation sets it up (shards to workers, shuffle buffer, WebLoader), with libjpeg-turbo."""

import cv2
import webdataset as wds
from _decode import decode
from _serve import arguments, endless, serve

args = arguments()


def pair(sample):
    return decode(sample["jpg"], sample["png"], args.size)


def one_thread(_):
    cv2.setNumThreads(1)


shards = [str(path) for path in sorted((args.data / "shards").glob("*.tar"))]
dataset = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).map(pair).batched(args.batch)
loader = wds.WebLoader(
    dataset, batch_size=None, num_workers=args.workers, persistent_workers=True, worker_init_fn=one_thread
)
serve(endless(lambda: loader), "webdataset", "torch", "simplejpeg", "opencv-python-headless")
