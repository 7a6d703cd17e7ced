"""The gate bias of streams, computed block by block from a source of frames as generation needs it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from wavenet.conditioning.base import BLOCK, Frames, FrameSource
from wavenet.config import ConditioningConfig
from wavenet.engine.state import GeneratorState
from wavenet.errors import ConfigError
from wavenet.models.gate_bias import GateBias

LONG_BLOCK = 64
"""Frames computed at once where all frames are known and a frame's bias does not depend on its block: fewer
calls, and less overlap between blocks, than with `BLOCK`."""

_MAX_CACHED_FRAMES = 1024


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Keep torch to one thread: a product split over a different number of threads may round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class BiasComputer(Protocol):
    """Computes gate biases: a `Conditioner`, or a compiled one."""

    conditioning: ConditioningConfig
    steady: bool
    """Whether a frame's bias has the same bits whatever frames are computed with it."""

    @property
    def context_frames(self) -> int:
        """Frames before and after one that its bias depends on."""
        ...

    def gate_bias(self, frames: Frames) -> GateBias:
        """Return the gate bias of all frames but the first and last `context_frames`."""
        ...


class GateBiasProvider:
    """The gate bias of a stream, computed block by block from the frames of a source.

    Its memory does not grow with the length of the stream. Which position of the stream frame 0 belongs to
    is part of the stream's state (`GeneratorState.conditioning_start`).

    Parameters
    ----------
    conditioner : BiasComputer
        The network's `Conditioner`, or the backend's equivalent.
    source : FrameSource
    guidance : float
        Factor on the bias: 1 as trained, 0 unconditional, above 1 emphasised.

    Raises
    ------
    ConfigError
        If `guidance` is not finite or below 0.

    Notes
    -----
    Classifier-free guidance (Ho and Salimans 2022) runs a network twice, conditioned (c) and unconditional
    (u), and extrapolates the logits: u + guidance * (c - u). Here the unconditional network is the same
    network with a bias of zero, as `condition_dropout` trains it, so the bias itself can be extrapolated.
    With l(b) the logits under a bias b, both are l(0) + guidance * l'(0) b to first order. Beyond that they
    differ: gates saturate and logits do not, so strong guidance distorts less here. It therefore is guidance
    in that paper's sense only for small biases, but takes one pass per sample instead of two and works on
    every backend.
    """

    def __init__(self, conditioner: BiasComputer, source: FrameSource, guidance: float = 1.0):
        if not (math.isfinite(guidance) and guidance >= 0):
            raise ConfigError(f"guidance = {guidance:g}: must be 0 or more; 1 is as trained")
        self.conditioner = conditioner
        self.source = source
        self.guidance = guidance
        self.block = LONG_BLOCK if conditioner.steady and source.complete else BLOCK
        self._blocks: OrderedDict[int, torch.Tensor] = OrderedDict()

    @torch.inference_mode()
    def gate_bias(self, first: int, stop: int) -> GateBias:
        """Return the gate bias of the samples [first, stop), counted from the first sample of frame 0.

        Returns
        -------
        GateBias
            Batch 1, or that of the source; `start` is counted from the first sample of frame 0, too.
        """
        config = self.conditioner.conditioning
        if self.source.constant:
            return GateBias(self._block(0)[:, :1], config.hop)
        low = first // config.hop // self.block
        # Interpolation reads the frame after the last one as well.
        high = ((stop - 1) // config.hop + config.linear) // self.block
        blocks = [self._block(block) for block in range(low, high + 1)]
        values = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        return GateBias(values, config.hop, low * self.block * config.hop, config.linear)

    def _block(self, number: int) -> torch.Tensor:
        if number not in self._blocks:
            context = self.conditioner.context_frames
            frames = self.source.read(number * self.block - context, self.block + 2 * context)
            with single_thread():
                rows = [self.conditioner.gate_bias(Frames(row[None])).values for row in frames]
            values = rows[0] if len(rows) == 1 else torch.cat(rows)
            self._blocks[number] = values if self.guidance == 1 else values * self.guidance
            if len(self._blocks) * self.block > _MAX_CACHED_FRAMES:
                self._blocks.popitem(last=False)
        return self._blocks[number]


Bias = GateBias | GateBiasProvider
"""Conditioning of streams: a gate bias, or a provider that computes it as generation needs it."""


def shared_gate_bias(provider: GateBiasProvider, state: GeneratorState, steps: int) -> GateBias | None:
    """Return the gate bias of the next steps of streams that all read the same frames; None if they do not.

    Returns
    -------
    GateBias or None
        Batch 1, or that of the provider's source.
    """
    starts = state.conditioning_start.tolist()
    offsets = {position - start for position, start in zip(state.position.tolist(), starts, strict=True)}
    if len(offsets) > 1 and not provider.source.constant:
        return None
    first = min(offsets, default=0)
    bias = provider.gate_bias(first, first + max(steps, 1))
    return _moved(bias, starts[0] if len(set(starts)) == 1 else state.conditioning_start.cpu())


def gate_bias_of_row(bias: Bias, state: GeneratorState, row: int, steps: int) -> GateBias:
    """Return the gate bias of the next steps of one stream, batch 1; `bias` has 1 row, or one per stream."""
    if isinstance(bias, GateBiasProvider):
        start = int(state.conditioning_start[row])
        first = int(state.position[row]) - start
        bias = _moved(bias.gate_bias(first, first + max(steps, 1)), start)
    return bias.stream(row if len(bias.values) > 1 else 0)


def grouped_gate_biases(
    biases: Sequence[Bias | None], state: GeneratorState, steps: int
) -> list[tuple[list[int], GateBias | None]]:
    """Return the streams that one call of an engine can serve together, and the gate bias of each group.

    An engine treats all its streams alike in `hop` and interpolation, which providers of one network can
    differ in: a constant bias is not interpolated.
    """
    groups: dict[tuple[int, bool] | None, list[tuple[int, GateBias]]] = {}
    unconditional: list[int] = []
    for row, bias in enumerate(biases):
        if bias is None:
            unconditional.append(row)
            continue
        own = gate_bias_of_row(bias, state, row, steps)
        groups.setdefault((own.hop, own.linear), []).append((row, own))
    found: list[tuple[list[int], GateBias | None]] = [
        ([row for row, _ in group], GateBias.join([own for _, own in group])) for group in groups.values()
    ]
    return [*found, (unconditional, None)] if unconditional else found


def _moved(bias: GateBias, start: int | torch.Tensor) -> GateBias:
    """Return the bias with `start` counted from the streams' beginnings, given where frame 0 begins."""
    if isinstance(start, torch.Tensor) and len(bias.values) != len(start):
        bias = dataclasses.replace(bias, values=bias.values.expand(len(start), -1, -1, -1))
    return dataclasses.replace(bias, start=start + bias.start)
