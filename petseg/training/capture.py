"""One training step as one CUDA graph: the host starts it with one call instead of a thousand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

WARM = 3
"""Steps before the capture: kernels are compiled, convolutions timed, and the optimiser's state made."""

Work = Callable[..., None]
"""A step, or a part of one: takes tensors, and gives nothing back."""


class CaptureError(Exception):
    """A step that cannot be captured; the text is CUDA's error."""


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Have torch raise RuntimeError where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it does not know every such place
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class CapturedStep:
    """A step that is recorded once and replayed on each batch.

    Only the thread that captures is held to what a capture allows; loaders may work beside it.

    Args:
        work: reads and writes tensors that stay where they are, and waits for nothing.
        inputs: what it takes, of a batch of made-up samples, which the warm-up learns from.

    Raises:
        CaptureError: the step does something that cannot be captured, such as reading a value on the host.
    """

    def __init__(self, work: Work, *inputs: torch.Tensor) -> None:
        device = inputs[0].device
        self._inputs = inputs
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                work(*self._inputs)
            torch.cuda.synchronize(device)
            try:
                with waiting_is_an_error():
                    work(*self._inputs)
            except RuntimeError as error:
                raise CaptureError(str(error).splitlines()[0]) from error
        torch.cuda.current_stream(device).wait_stream(stream)
        torch.cuda.synchronize(device)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                work(*self._inputs)
        except RuntimeError as error:
            # The generator still believes that it is being captured, and dropout would fail from here on.
            fresh = torch.Generator(device).graphsafe_get_state()
            torch.cuda.default_generators[inputs[0].get_device()].graphsafe_set_state(fresh)
            raise CaptureError(str(error).splitlines()[0]) from error

    def takes(self, images: torch.Tensor) -> bool:
        """Whether a batch has the shape that was captured."""
        return images.shape == self._inputs[0].shape

    def __call__(self, *batch: torch.Tensor) -> None:
        """Learn from one batch, whose tensors are copied; no host sync."""
        for held, given in zip(self._inputs, batch, strict=True):
            held.copy_(given, non_blocking=True)
        self._graph.replay()
