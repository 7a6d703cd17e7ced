"""What generation is told, read frame by frame as it is needed: classes, features, scores."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

import torch

from wavenet.conditioning.base import BLOCK, Frames, FrameSource
from wavenet.config import ConditioningConfig
from wavenet.errors import ConfigError
from wavenet.models.gate_bias import GateBias

LONG_BLOCK = 64
"""The same where nobody waits for the last of them, and a frame's bias depends on no others' being computed
with it: what a call costs, and the frames around a block that count for it, are shared by more."""

_FRAMES_KEPT = 1024


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Keep torch to one thread: a product split over another number of them may round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class BiasMaker(Protocol):
    """What makes gate biases: a `Conditioner`, or a compiled one."""

    conditioning: ConditioningConfig
    steady: bool
    """Whether a frame's bias is the same to the bit whatever frames are computed with it."""

    @property
    def context_frames(self) -> int:
        """Frames before and after one that its bias depends on."""
        ...

    def gate_bias(self, frames: Frames) -> GateBias:
        """Return the gate bias of frames, without the first and last `context_frames` of them."""
        ...


class Steering:
    """The gate bias of a stream, made piece by piece of what a source tells.

    Its memory does not grow with the length of the stream.

    Parameters
    ----------
    conditioner : BiasMaker
        The network's `Conditioner`, or what a backend has in its place.
    source : FrameSource
    start : int
        Position of the stream at which frame 0 begins.
    guidance : float
        What the bias is multiplied by: 1 as trained, 0 as told nothing, above 1 told with emphasis.

    Raises
    ------
    ConfigError
        If `guidance` is not finite or below 0.

    Notes
    -----
    Classifier-free guidance (Ho and Salimans 2022) runs a network twice, told (c) and untold (u), and goes on
    from one through the other: logits u + guidance * (c - u). Here untold is the same network with a bias of
    zero, as `condition_dropout` trains it, so the same way can be gone in the bias itself. With l(b) the
    logits under a bias b, both are l(0) + guidance * l'(0) b to first order; beyond that they differ: gates
    saturate, so that too much guidance distorts less here, and logits do not. It is therefore guidance in
    that paper's sense only where biases are small, but it takes one pass a sample instead of two, and every
    backend has it.
    """

    def __init__(self, conditioner: BiasMaker, source: FrameSource, start: int = 0, guidance: float = 1.0):
        if not (math.isfinite(guidance) and guidance >= 0):
            raise ConfigError(f"guidance = {guidance:g}: must be 0 or more; 1 is as trained")
        self.conditioner = conditioner
        self.source = source
        self.start = start
        self.guidance = guidance
        self.block = LONG_BLOCK if conditioner.steady and source.complete else BLOCK
        self._blocks: OrderedDict[int, torch.Tensor] = OrderedDict()

    @torch.inference_mode()
    def between(self, first: int, stop: int) -> GateBias:
        """Return the gate bias that holds for the positions [first, stop)."""
        conditioning = self.conditioner.conditioning
        if self.source.constant:
            return GateBias(self._block(0)[:, :1], conditioning.hop)
        low = (first - self.start) // conditioning.hop // self.block
        # With interpolation the frame after the last one counts as well.
        high = ((stop - 1 - self.start) // conditioning.hop + conditioning.linear) // self.block
        blocks = [self._block(block) for block in range(low, high + 1)]
        values = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        return GateBias(
            values, conditioning.hop, self.start + low * self.block * conditioning.hop, conditioning.linear
        )

    def _block(self, number: int) -> torch.Tensor:
        if number not in self._blocks:
            context = self.conditioner.context_frames
            frames = self.source.read(number * self.block - context, self.block + 2 * context)
            with single_thread():
                rows = [self.conditioner.gate_bias(Frames(row[None])).values for row in frames]
            values = rows[0] if len(rows) == 1 else torch.cat(rows)
            self._blocks[number] = values if self.guidance == 1 else values * self.guidance
            if len(self._blocks) * self.block > _FRAMES_KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[number]
