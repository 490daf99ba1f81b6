"""Scores on whole images, each at its own size."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.data.decode.images import Chroma
from petseg.data.loaders.build import decoders, open_reader
from petseg.data.order import keyed_hash
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place
from petseg.data.shards.reader import OnBad
from petseg.device import World
from petseg.inference.evaluate import Evaluation, Tally, check_classes, following
from petseg.inference.segment import Segmenter, likeliest
from petseg.inference.trained import TrainedModel
from petseg.model.losses import Objective
from petseg.model.metrics import confusion_matrices
from petseg.threads import ComputeThreads

MOST_AHEAD = 4
"""Images that are decoded while one is scored."""

Sample = tuple[int, np.ndarray, np.ndarray]
"""Index, image u8[H, W, 3], codes u8[H, W]."""


class WholeImages:
    """The samples of a split in full, decoded ahead; this rank's share of them.

    Args:
        folder: shard folder.
        manifest: its manifest.
        split: name of a split.
        world: the ranks that share the work.
        verify: check the shards' hashes first.
        on_bad: what a damaged sample leads to, as in `build_loader`.
        num_threads: decoding threads; 0 for one a usable core.
        chroma: how JPEGs are decoded.

    Raises:
        PetsegError: no such split, or shards that are not what the manifest says.
    """

    def __init__(
        self,
        folder: Place,
        manifest: Manifest,
        split: str,
        world: World,
        *,
        verify: bool = True,
        on_bad: OnBad = "stop",
        num_threads: int = 0,
        chroma: Chroma = "fancy",
    ) -> None:
        self._reader, bad = open_reader(
            folder, manifest, split, world=world.size, verify=verify, on_bad=on_bad, chroma=chroma
        )
        self._world = world
        self._pool = ThreadPoolExecutor(min(MOST_AHEAD, decoders(num_threads)), "petseg-images")
        self.split = split
        self.indices = np.setdiff1d(np.arange(len(self._reader)), bad)
        """i64[n], of the sound ones."""
        self.skipped = tuple(map(self._reader.where, bad))
        """Names of the damaged ones."""

    @classmethod
    def of(cls, config: TrainConfig, folder: Place, manifest: Manifest, split: str, world: World) -> WholeImages:
        """As a run's options have them."""
        return cls(
            folder,
            manifest,
            split,
            world,
            verify=config.verify,
            on_bad=config.on_bad_sample,
            num_threads=config.num_threads,
            chroma=config.chroma,
        )

    def some(self, count: int) -> np.ndarray:
        """Indices of `count` images, drawn by a hash, so that they are the same in every epoch and run; 0 for all."""
        if not 0 < count < len(self.indices):
            return self.indices
        return np.sort(self.indices[np.argsort(keyed_hash(self.indices, 11), kind="stable")[:count]])

    def decoded(self, indices: np.ndarray) -> Iterator[Sample]:
        """This rank's share of some samples, in their order.

        Raises:
            PetsegError: a sample cannot be read, or is damaged.
        """
        mine = iter(indices[self._world.rank :: self._world.size].tolist())
        ahead: deque[tuple[int, Future[tuple[np.ndarray, np.ndarray]]]] = deque()
        try:
            while True:
                for index in itertools.islice(mine, MOST_AHEAD - len(ahead)):
                    ahead.append((index, self._pool.submit(self._reader.decoded, index)))
                if not ahead:
                    return
                index, future = ahead.popleft()
                yield index, *future.result()
        finally:
            for _, future in ahead:
                future.cancel()

    def close(self) -> None:
        """Release threads and files."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()


def at_own_size(trained: TrainedModel, scales: Sequence[float], *, full_size: bool) -> bool:
    """Whether a network is scored on images at their own size: as its run did, or as is asked for."""
    return full_size or tuple(scales) != (1.0,) or trained.config.scores_whole_images


def evaluate_whole_images(
    segmenter: Segmenter,
    images: WholeImages,
    classes: ClassTable,
    world: World,
    *,
    objective: Objective,
    count: int = 0,
    threads: ComputeThreads | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a network against masks as they are on disk: every pixel counts once, so larger images weigh more.

    Args:
        segmenter: how the network is used on an image of any size, on the device.
        images: the samples.
        classes: class table of the shards.
        world: the ranks that share them.
        objective: what `loss` is, on the CPU.
        count: images that are scored, always the same ones; 0 for all.
        threads: that it computes on; they follow the load.
        progress: called with 1 after each image.

    Raises:
        PetsegError: a damaged sample.
    """
    tally = Tally(len(classes), world)
    for sample in images.decoded(images.some(count)):
        score_whole_image(segmenter, sample, classes, tally, objective)
        if threads:
            threads.look()
        if progress:
            progress(1)
    return tally.evaluation(classes, objective, skipped=len(images.skipped))


@torch.no_grad()
def score_whole_image(
    segmenter: Segmenter, sample: Sample, classes: ClassTable, tally: Tally, objective: Objective
) -> None:
    """Count one image."""
    index, image, codes = sample
    truth = classes.lookup()[codes]
    confusion = torch.zeros((1, len(classes), len(classes)), dtype=torch.int64)
    for rows, band in segmenter.bands(image):
        masks = torch.from_numpy(truth[rows]).long().unsqueeze(0)
        confusion += confusion_matrices(torch.from_numpy(likeliest(band)).long().unsqueeze(0), masks, len(classes))
        # Logarithms of probabilities are logits that softmax leaves as they are.
        logits = torch.from_numpy(band).unsqueeze(0).clamp_min(torch.finfo(torch.float32).tiny).log()
        tally.add_loss(objective(logits, masks))
    tally.add(torch.tensor([index]), confusion)


def score_whole_images(
    trained: TrainedModel,
    folder: Place,
    manifest: Manifest,
    split: str,
    *,
    device: torch.device,
    tta: bool = False,
    scales: Sequence[float] = (1.0,),
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score every sample of a split against its mask as it is on disk, as `predict` would segment it.

    Args:
        trained: a network on `device`.
        folder: shard folder.
        manifest: its manifest.
        split: name of a split.
        device: where the network runs.
        tta: see `Segmenter`.
        scales: likewise.
        progress: called with 1 after each image.

    Raises:
        PetsegError: no such split, shards of other classes than the network's, or a damaged sample.
    """
    check_classes(trained, folder, manifest)
    config, world = trained.config, World(rank=0, size=1, device=device)  # all of it, also under torchrun
    segmenter = Segmenter(trained, device, amp=config.amp, tta=tta, scales=scales)
    images = WholeImages.of(config, folder, manifest, split, world)
    try:
        with following(config, device) as threads:
            return evaluate_whole_images(
                segmenter,
                images,
                manifest.classes,
                world,
                objective=trained.objective().cpu(),
                threads=threads,
                progress=progress,
            )
    finally:
        images.close()
