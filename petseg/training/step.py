"""One training step, without a host sync: the loss stays on the device until it is read."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn

from petseg.classes import ClassTable, class_indices
from petseg.config import TrainConfig
from petseg.data.loaders.loader import Batch
from petseg.device import World, amp_dtype
from petseg.model.build import objective_for
from petseg.model.losses import Objective, sums_length
from petseg.model.networks import Network, OwnNetwork, evaluating
from petseg.model.smp import SmpNetwork
from petseg.model.transform import InputTransform, to_float
from petseg.training.augmentation import Augment, policy_augment
from petseg.training.capture import CapturedStep, CaptureError
from petseg.training.recipe import Course, Ema, build_optimizer, load_optimizer, rate_at, set_rate


class TrainStep:
    """Forward, backward and update, with the averaged weights and the running loss.

    Args:
        network: on the device, in its memory format.
        config: options, every `auto` settled.
        classes: class table of the shards.
        transform: input transform, on the device.
        world: ranks; with several the network is wrapped in DistributedDataParallel.
        total_samples: samples that all ranks will see in the whole run, for the schedule.
        objective: what is minimised, on the device; default: what the options say, all classes alike.
        augmentation: default: what the options say.
        note: called with a sentence on what turned out not to be possible.
    """

    def __init__(
        self,
        network: Network,
        config: TrainConfig,
        classes: ClassTable,
        transform: InputTransform,
        world: World,
        *,
        total_samples: int,
        objective: Objective | None = None,
        augmentation: Augment | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.network = network
        self.config = config
        self.classes = classes
        self.device = world.device
        self.optimizer = build_optimizer(network, config, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.amp == "fp16")
        self.course = Course(end=total_samples)
        self.samples = 0
        self.steps = 0
        self.loss_sums = torch.zeros(sums_length(len(classes)), dtype=torch.float64, device=world.device)
        self._amp_dtype = amp_dtype(config.amp)
        self.objective = (objective or objective_for(config)).to(world.device)
        self._augment = augmentation or policy_augment(config)
        self._augments_by_own = augmentation is not None
        self._transform = transform
        # Networks of others may have dropout of their own.
        self._draws = config.dropout > 0 or isinstance(network, SmpNetwork | OwnNetwork)
        self.world = world
        self._clip = config.grad_clip or math.inf
        wrapped: nn.Module = network
        if world.size > 1:
            wrapped = nn.parallel.DistributedDataParallel(
                network,
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
                find_unused_parameters=isinstance(network, OwnNetwork) and network.has_unused,
            )
        self._wrapped = wrapped
        # After the wrapping, which gives every rank the weights of the first.
        self.ema = Ema(network, config.ema) if config.ema else None
        # Bytes until the loss, which alone needs more.
        self._table = classes.device_table(world.device).to(torch.uint8)
        self.compiled = config.compile == "on"
        self._eager = cast(Any, self._eager_loss if config.accumulate == 1 else self._eager_part)
        self._loss = cast(Any, self._compiled_loss if self.compiled else self._eager)
        if self.compiled and world.device.type == "cpu":
            from torch._inductor import config as inductor_config  # takes a second to import

            # Else kernels hold on to the number of threads that there were when they were compiled.
            inductor_config.cpp.dynamic_threads = True
        self._compilation = cast(Any, torch.compile(self._eager) if self.compiled else None)
        self._note = note
        self._captured: CapturedStep | None = None

    def _eager_loss(
        self, images: torch.Tensor, codes: torch.Tensor, indices: torch.Tensor, epoch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(the loss, what it is made of)."""
        sums = self._sums(*self._augmented(images, codes, indices, epoch))
        return self.objective.value(sums), sums.detach()

    def _eager_part(
        self, x: torch.Tensor, masks: torch.Tensor, count: torch.Tensor, share: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for one of several batches of a step; see `Objective.part`."""
        sums = self._sums(x, masks)
        return self.objective.part(sums, count, share), sums.detach()

    def _augmented(
        self, images: torch.Tensor, codes: torch.Tensor, indices: torch.Tensor, epoch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images f32[N, 3, H, W] in 0-1 and class indices u8[N, H, W] that are learned from."""
        masks = class_indices(self._table, codes, indices)
        x = to_float(images, channels_last=self.config.channels_last)
        return self._augment(x, masks, indices, epoch)

    def _sums(self, x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, self._amp_dtype, enabled=self._amp_dtype is not None):
            outputs = self._wrapped(self._transform.scale(x))
        sums: torch.Tensor = self.objective(outputs, masks)
        return sums

    def _compiled_loss(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        try:
            found: tuple[torch.Tensor, torch.Tensor] = self._compilation(*inputs)
        except TorchDynamoException as error:
            # Whether a network's kernels compile is only known when they are compiled.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            cause = next((line for line in reversed(lines) if "Error" in line), lines[0])
            self._note(f"torch.compile fails for this network ({cause}): training continues without it.")
            self.compiled, self._loss = False, self._eager
            first: tuple[torch.Tensor, torch.Tensor] = self._eager(*inputs)
            return first
        return found

    def __call__(self, batch: Batch | Sequence[Batch], epoch: torch.Tensor) -> None:
        """Learn from one batch, or from several in one step.

        Args:
            batch: this rank's batch, on the device; under `--accumulate` several.
            epoch: i64 scalar tensor on the device.
        """
        set_rate(self.optimizer, self.rate)
        if self._draws:
            self._seed_dropout()
        if self.ema:
            self.ema.advance()
        batches = [batch] if isinstance(batch, Batch) else batch
        if self.config.accumulate == 1:
            (only,) = batches
            learn = self._captured if self._captured and self._captured.takes(only.images) else self._learn
            learn(only.images, only.codes, _keys(only), epoch)
        else:
            self._learn_together(batches, epoch)
        self.steps += 1
        self.samples += sum(each.indices.shape[0] for each in batches) * self.world.size

    def _learn(self, images: torch.Tensor, codes: torch.Tensor, indices: torch.Tensor, epoch: torch.Tensor) -> None:
        """The part of a step that runs on the device, without the host."""
        loss, sums = self._loss(images, codes, indices, epoch)
        self.scaler.scale(loss).backward()
        self.loss_sums += sums.double()
        self._update()

    def _learn_together(self, batches: Sequence[Batch], epoch: torch.Tensor) -> None:
        """One step from several batches. What they are divided by is known once all of them are augmented."""
        with torch.no_grad():
            parts = [self._augmented(each.images, each.codes, _keys(each), epoch) for each in batches]
            count = torch.stack([self.objective.count(masks) for _, masks in parts]).sum().float()
            share = torch.full_like(count, 1 / len(parts))
        for number, (x, masks) in enumerate(parts):
            captured = self._captured if self._captured and self._captured.takes(x) else None
            # Gradients meet once a step, in the last batch.
            apart = self.world.size > 1 and number < len(parts) - 1
            with cast(Any, self._wrapped).no_sync() if apart else nullcontext():
                (captured or self._learn_part)(x, masks, count, share)
        self._update()

    def _learn_part(self, x: torch.Tensor, masks: torch.Tensor, count: torch.Tensor, share: torch.Tensor) -> None:
        """The part of a step for one of several batches: gradients add up."""
        loss, sums = self._loss(x, masks, count, share)
        self.scaler.scale(loss).backward()
        self.loss_sums += sums.double()

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self._clip != math.inf:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._clip, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # A captured part adds to gradients that stay where they are.
        self.optimizer.zero_grad(set_to_none=self.config.accumulate == 1)
        if self.ema:
            self.ema.average()

    def capture(self) -> None:
        """Record the step as one CUDA graph, where that is possible. To be called before the first step.

        It is warmed up on noise, which is undone. What `load_state_dict` puts back later, the graph works on.
        """
        config, device = self.config, self.device
        # Under DDP a reduction would have to be captured on all ranks at once.
        if device.type != "cuda" or self.world.size > 1 or not config.cuda_graphs:
            return
        noise = torch.Generator().manual_seed(0)
        shape = (config.batch_size, *config.height_width)
        images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=noise).to(device)
        known = torch.tensor(self.classes.codes, dtype=torch.uint8)
        codes = known[torch.randint(0, len(known), shape, generator=noise)].to(device)
        with self.undone():
            try:
                indices = torch.arange(len(images), device=device)
                inputs = images, codes, indices, torch.zeros((), dtype=torch.int64, device=device)
                if config.accumulate == 1:
                    self._captured = CapturedStep(self._learn, *inputs)
                else:
                    one = torch.ones((), device=device)
                    x, masks = self._augmented(*inputs)
                    self._captured = CapturedStep(self._learn_part, x, masks, one, one.clone())
                    self.optimizer.zero_grad(set_to_none=False)
            except CaptureError as error:
                self.optimizer.zero_grad(set_to_none=True)
                self._note(f"this network's step cannot be a CUDA graph ({error}), so its kernels start one by one.")

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Take back what is learned inside, in place: a captured step uses these. All ranks together."""
        modules = (self.network, self.ema.network) if self.ema else (self.network,)
        before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
        state = copy.deepcopy(self.state_dict())
        yield
        for module, weights in zip(modules, before, strict=True):
            module.load_state_dict(weights)
        self.load_state_dict(state)

    @torch.no_grad()
    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        """Outputs f[N, C, H, W] of the network that evaluation uses for images u8[N, H, W, 3], as it computes them."""
        amp = torch.autocast(self.device.type, self._amp_dtype, enabled=self._amp_dtype is not None)
        with evaluating(self.evaluated_network) as network, amp:
            outputs: torch.Tensor = network(self._transform(images))
        return outputs

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return rate_at(self.course.share(self.samples), self.config)

    @property
    def evaluated_network(self) -> Network:
        """The network that evaluation uses: the averaged one where there is one."""
        return cast(Network, self.ema.network) if self.ema else self.network

    def mean_loss(self) -> float:
        """The loss over the pixels of all ranks since the epoch began, as validation has it. Waits for the device."""
        return self.objective.value(self.world.sum(self.loss_sums.clone())).item()

    def counted_pixels(self) -> int:
        """Pixels (their weights) of all ranks since the epoch began that are not ignored. Waits for the device."""
        return math.ceil(self.world.sum(self.loss_sums[1:2].clone()).item())

    def start_epoch(self) -> None:
        """Begin a new mean."""
        self.loss_sums.zero_()

    @property
    def skipped_steps(self) -> int:
        """Steps that fp16's GradScaler left out for gradients that were not finite. Waits for the device."""
        if not self.scaler.is_enabled() or not self.steps:
            return 0
        # A fused optimiser counts only the steps that it took.
        taken = next(state["step"] for state in self.optimizer.state.values() if "step" in state)
        return self.steps - int(taken)

    def weights_are_finite(self) -> bool:
        """Whether all weights, averages and buffers are finite numbers. Waits for the device."""
        modules = (self.network, self.evaluated_network)
        tensors = [t for module in modules for t in module.state_dict().values() if t.is_floating_point()]
        return bool(torch.stack([t.isfinite().all() for t in tensors]).all())

    def share_buffers(self) -> None:
        """Give every rank rank 0's buffers, so that what is evaluated is what is saved."""
        self.world.broadcast_buffers(self.network)
        if self.ema:
            self.world.broadcast_buffers(self.ema.network)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, beside the weights and the loader's position.

        All ranks must call it together: the loss is summed over them.
        """
        return {
            "ema_updates": self.ema.updates if self.ema else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "own_augment": self._augments_by_own,
            "samples": self.samples,
            "steps": self.steps,
            "course": dataclasses.astuple(self.course),
            "loss_sums": self.world.sum(self.loss_sums.clone()).tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, but for the course, which may have another end now."""
        if self.ema:
            self.ema.updates = state["ema_updates"]
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.samples = state["samples"]
        self.steps = state["steps"]
        self.loss_sums.zero_()
        if self.world.is_main and "loss_sums" in state:  # without, the loss of that epoch counts from here
            self.loss_sums += torch.tensor(state["loss_sums"], dtype=torch.float64, device=self.device)

    def _seed_dropout(self) -> None:
        """Dropout drawn anew from (seed, step, rank), so that no random state has to be saved for any rank."""
        key = struct.pack("<3Q", self.config.seed, self.steps, self.world.rank)
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)


def _keys(batch: Batch) -> torch.Tensor:
    """i64[N]: what a sample's augmentation is drawn by, its index, and another number at each visit of an epoch."""
    return batch.indices if batch.visits is None else batch.indices + batch.visits * _ANOTHER


_ANOTHER = 0x9E3779B1
"""The golden ratio in 32 bits: far from any other sample's number."""
