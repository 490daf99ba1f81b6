# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "megatron-energon==7.4.1", "torch>=2.11,<2.16", "simplejpeg==1.9.*", "opencv-python-headless==5.0.*"
# ]
# ///
"""Megatron-Energon on the same tars, prepared by its own indexer: crude samples, decoded by a cooker in its workers."""

import shutil

import cv2
import torch
from _decode import decode
from _serve import arguments, endless, serve
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.flavors import BaseWebdatasetFactory

args = arguments()
root = args.scratch / "energon"


@edataclass
class Pet(Sample):
    image: torch.Tensor
    mask: torch.Tensor


@stateless
def cook(sample):
    image, mask = decode(sample["jpg"], sample["png"], args.size)
    return Pet(**basic_sample_keys(sample), image=torch.from_numpy(image), mask=torch.from_numpy(mask))


class Pets(DefaultTaskEncoder):
    cookers = (Cooker(cook),)
    decoder = None


def prepare():
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    tars = sorted((args.data / "shards").glob("*.tar"))
    for tar in tars:
        shutil.copy(tar, root)
    BaseWebdatasetFactory.prepare_dataset(
        root, [tar.name for tar in tars], split_parts_ratio=[("train", 1), ("val", 0), ("test", 0)],
        split_parts_patterns=None, tar_index_only=False, shuffle_seed=None, workers=1,
    )  # fmt: skip
    (root / ".nv-meta" / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")


if __name__ == "__main__":
    cv2.setNumThreads(1)
    if not (root / ".nv-meta" / "dataset.yaml").exists():
        prepare()
    dataset = get_train_dataset(
        str(root), batch_size=args.batch, shuffle_buffer_size=1000, max_samples_per_sequence=100,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=args.workers), task_encoder=Pets(),
    )  # fmt: skip
    loader = get_loader(dataset)
    serve(((batch.image, batch.mask) for batch in endless(lambda: loader)), "megatron-energon", "torch", "simplejpeg")
