"""DALI's own webdataset reader, decoders and resize on the CPU, as its documentation shows them."""

import os

import torch
from _device_loading import dali_native
from _serve import arguments, serve

os.environ.setdefault("DALI_DISABLE_NVML", "1")

args = arguments()
batches = dali_native(args.data, args.workers, args.size, args.batch, torch.device("cpu"))
serve(((images, masks[..., 0]) for images, masks in batches), "nvidia-dali-cuda120")
