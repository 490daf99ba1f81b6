"""A torch DataLoader over files, with libjpeg-turbo (simplejpeg) and OpenCV: what a careful person writes by hand."""

import cv2
import torch
from _decode import decode
from _serve import arguments, endless, serve
from torch.utils.data import DataLoader, Dataset

args = arguments()


class Files(Dataset):
    def __init__(self, root):
        self.images = sorted((root / "images").iterdir())
        self.masks = sorted((root / "masks").iterdir())

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return decode(self.images[index].read_bytes(), self.masks[index].read_bytes(), args.size)


def one_thread(_):
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


loader = DataLoader(
    Files(args.data / "files"), batch_size=args.batch, shuffle=True, num_workers=args.workers, persistent_workers=True,
    worker_init_fn=one_thread,
)  # fmt: skip
serve(endless(lambda: loader), "torch", "simplejpeg", "opencv-python-headless")
