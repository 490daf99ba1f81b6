"""Freezing of parts of a network."""

from __future__ import annotations

from typing import Self

from torch import nn


class Freezable(nn.Module):
    """A network of which parts can be frozen: their weights and BatchNorm statistics do not change."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: tuple[nn.Module, ...] = ()

    def encoder_parts(self) -> tuple[nn.Module, ...]:
        """The parameters that `freeze_encoder` freezes."""
        raise NotImplementedError

    def freeze_encoder(self) -> None:
        """Freeze the encoder."""
        self._frozen = self.encoder_parts()
        for part in self._frozen:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Like `Module.train`, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self
