"""Conditioning as one mechanism: a bias on every layer's gate, known per frame.

Whatever a network is told stands in one tensor of frames (batch, channels, frames): a weight for each
class, then the features. `Conditioner` makes the bias of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from wavenet.config import WaveNetConfig
from wavenet.errors import ConfigError


@dataclass(frozen=True)
class GateBias:
    """What is added to each layer's gate, at frame rate (van den Oord et al. 2016, section 2.5).

    The bias at position p of a stream is the one used in the step that predicts sample p. With
    q = p - start and f = floor(q / hop) it is frame f, or, if `linear`, the mixture of frames f and
    f + 1 with weight (q mod hop) / hop on the latter. Beyond either end the nearest frame holds.

    Attributes
    ----------
    values : float32 tensor (batch, frames, layers, 2 * dilation_channels)
        The filter half first, as in the dilated convolutions.
    hop : int
        Samples per frame.
    start : int
        Position of the first sample of frame 0.
    linear : bool
        Interpolate between frames rather than repeat them.
    """

    values: torch.Tensor
    hop: int
    start: int = 0
    linear: bool = False

    def __post_init__(self) -> None:
        if self.values.dim() != 4 or self.values.dtype != torch.float32 or self.values.shape[1] == 0:
            raise ConfigError(
                "gate bias: expected float32 of shape (batch, frames, layers, 2 * dilation_channels), "
                f"found {self.values.dtype} {tuple(self.values.shape)}"
            )
        if self.hop < 1:
            raise ConfigError(f"gate bias: hop = {self.hop} samples per frame: must be at least 1")

    def at(self, position: int, steps: int, layer: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return one layer's bias for `steps` positions, (batch, steps, 2 * dilation_channels)."""
        values = self.values[:, :, layer].to(dtype)
        last = values.shape[1] - 1
        if last == 0:
            return values.expand(-1, steps, -1)
        first, skipped = divmod(position - self.start, self.hop)
        frames = -(-(skipped + steps) // self.hop)
        index = torch.arange(first, first + frames + 1, device=values.device)
        some = values[:, index.clamp(0, last)]
        if steps < self.hop:
            offset = torch.arange(skipped, skipped + steps, device=values.device)
            here, beyond = some[:, offset // self.hop], some[:, offset // self.hop + 1]
            weight = self._weight(offset % self.hop, dtype)
            return (1 - weight) * here + weight * beyond if self.linear else here
        # Repeated by a view, whose gradient is a plain sum over each frame's samples.
        here, beyond = (each.unsqueeze(2) for each in (some[:, :-1], some[:, 1:]))
        here = here.expand(-1, -1, self.hop, -1)
        if self.linear:
            weight = self._weight(torch.arange(self.hop, device=values.device), dtype)
            here = (1 - weight) * here + weight * beyond
        return here.reshape(len(values), frames * self.hop, -1)[:, skipped : skipped + steps]

    def _weight(self, within: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return (within.to(torch.float32) / self.hop).to(dtype)[:, None]

    def stream(self, index: int) -> GateBias:
        """Return the bias of one stream, batch 1."""
        return replace(self, values=self.values[index : index + 1])


@dataclass(frozen=True)
class Frames:
    """What a network is told, per frame.

    Attributes
    ----------
    values : float32 tensor (batch, channels, frames)
        A weight for each class, then the features.
    first : int
        Number of the first frame; frame f begins at position f * hop of the stream.
    heard : bool tensor (batch,), optional
        Which rows are told at all; the others have no bias, whatever their frames say.
    """

    values: torch.Tensor
    first: int = 0
    heard: torch.Tensor | None = None

    def rows(self, some: slice, device: torch.device | None = None) -> Frames:
        """Return some of the batch, on a device."""
        heard = None if self.heard is None else self.heard[some].to(device, non_blocking=True)
        return replace(self, values=self.values[some].to(device, non_blocking=True), heard=heard)

    def pinned(self) -> Frames:
        """Return them in memory from which a GPU copies while it computes."""
        heard = None if self.heard is None else self.heard.pin_memory()
        return replace(self, values=self.values.pin_memory(), heard=heard)


class Conditioner(nn.Module):
    """Makes the gate bias of frames: convolutions over neighbouring frames, then a projection per layer.

    How soon a network follows depends on what the projection, which begins at zero, is fed. Values are kept
    near one, and as different from frame to frame as they can be: features are centred (`adapt`) and the
    activations odd. A part that all frames share would be learnt first, as a mere bias with a hundred times
    the learning rate, and with features that hardly change go on to shut the gates for good; no bias leaves
    [-LIMIT, LIMIT] therefore.

    Class weights pass one matrix only, so that mixtures of classes are mixtures of their biases (but for the
    limit) and no weight at all adds nothing.

    Parameters
    ----------
    config : WaveNetConfig
        With a `conditioning`.
    """

    steady = False
    """A product of matrices may round otherwise where there are more rows."""

    def __init__(self, config: WaveNetConfig):
        super().__init__()
        told = config.conditioning
        assert told is not None
        self.told = told
        self.shape = (config.layers, 2 * config.dilation_channels)
        width = told.conditioning_channels
        if told.class_names:
            self.classes = nn.Linear(len(told.class_names), width, bias=False)
            nn.init.normal_(self.classes.weight, std=0.3)
        if told.features != "none":
            channels = (told.feature_channels, width, width)
            self.centre = nn.Buffer(torch.zeros(told.feature_channels, 1))
            self.scale = nn.Buffer(torch.ones(told.feature_channels, 1))
            self.frames = nn.ModuleList()
            for inputs, dilation in zip(channels, DILATIONS, strict=True):
                convolution = nn.Conv1d(inputs, width, TAPS, dilation=dilation)
                nn.init.normal_(convolution.weight, std=1 / math.sqrt(TAPS * inputs))
                assert convolution.bias is not None
                nn.init.zeros_(convolution.bias)
                self.frames.append(convolution)
        # Each layer has a bias of its own already.
        self.projection = nn.Linear(width, self.shape[0] * self.shape[1], bias=False)
        # Training begins with the network that is told nothing.
        nn.init.zeros_(self.projection.weight)

    @property
    def convolutions(self) -> list[nn.Conv1d]:
        """Those over frames, in order; none without features."""
        layers = self.frames if self.told.features != "none" else ()
        return [layer for layer in layers if isinstance(layer, nn.Conv1d)]

    def settle(self) -> None:
        """Lay weights that will change no more so that `forward` need not turn them each time."""
        for convolution in self.convolutions:
            weight = convolution.weight.detach().transpose(1, 2).contiguous().transpose(1, 2)
            convolution.weight = nn.Parameter(weight, requires_grad=False)

    @property
    def gain(self) -> float:
        """What the projection is multiplied with."""
        return GAIN / math.sqrt(self.told.conditioning_channels)

    @property
    def reach(self) -> int:
        """Frames before and after one that its bias depends on."""
        return reach(self.told.features)

    def adapt(self, frames: torch.Tensor) -> None:
        """Let features be centred and scaled as they come in some frames, before training begins.

        What frames have in common tells nothing, but would be learnt first. Each mel band has a scale of its
        own; the rows of a score share one, as those that are hardly used are not to outweigh the others.

        Parameters
        ----------
        frames : float32 tensor (batch, channels, frames)
        """
        if self.told.features == "none":
            return
        rows = frames[:, len(self.told.class_names) :].transpose(0, 1).flatten(1)
        deviation = rows.var(dim=1, keepdim=True)
        if self.told.features == "score":
            deviation = deviation.mean().expand_as(deviation)
        self.centre.copy_(rows.mean(dim=1, keepdim=True))
        self.scale.copy_(deviation.sqrt().clamp(min=LEAST_DEVIATION).reciprocal())

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the gate bias of all frames but the first and last `reach`.

        Parameters
        ----------
        frames : float32 tensor (batch, channels, frames)

        Returns
        -------
        float32 tensor (batch, frames - 2 * reach, layers, 2 * dilation_channels)
        """
        count, reach = len(self.told.class_names), self.reach
        hidden: torch.Tensor | None = None
        if self.told.features != "none":
            found = ((frames[:, count:] - self.centre) * self.scale).transpose(1, 2)
            for number, (convolution, dilation) in enumerate(zip(self.convolutions, DILATIONS, strict=True)):
                found = found if number == 0 else torch.tanh(found)
                steps = found.shape[1] - (TAPS - 1) * dilation
                taps = [found[:, tap * dilation : tap * dilation + steps] for tap in range(TAPS)]
                matrix = convolution.weight.transpose(1, 2).flatten(1)
                found = levelled(F.linear(torch.cat(taps, dim=2), matrix, convolution.bias))
            hidden = found
        if count:
            weights = frames[:, :count, reach : frames.shape[2] - reach].transpose(1, 2)
            mixed = self.classes(weights)
            hidden = mixed if hidden is None else hidden + mixed
        assert hidden is not None
        batch, length, _ = hidden.shape
        bias = LIMIT * torch.tanh(self.projection(hidden).float() * (self.gain / LIMIT))
        return bias.reshape(batch, length, *self.shape)

    def gate_bias(self, frames: Frames) -> GateBias:
        """Return the gate bias of frames, which must reach `reach` beyond what is wanted on either side."""
        first = (frames.first + self.reach) * self.told.hop
        values = self(frames.values)
        if frames.heard is not None:
            values = values * frames.heard[:, None, None, None]
        return GateBias(values, self.told.hop, first, self.told.linear)


def levelled(hidden: torch.Tensor) -> torch.Tensor:
    """Return values (batch, frames, channels) with a root mean square below 1 in each frame.

    They are divided by sqrt(1 + mean square): root mean square normalisation (Zhang and Sennrich 2019), but
    that soft notes stay softer than loud ones, and silence stays silence.
    """
    return F.rms_norm(hidden.float(), hidden.shape[-1:], eps=1.0)


TAPS = 3
DILATIONS = (1, 2, 4)

GAIN = 3.0
"""How much a unit of the projection weighs, beside the square root of its width."""

LIMIT = 5.0
"""Of a gate's bias: tanh and sigmoid are flat beyond."""

LEAST_DEVIATION = 0.01
"""Of a feature: one that hardly changes is not blown up."""


def reach(features: str) -> int:
    """Return how many frames before and after one its bias depends on."""
    return 0 if features == "none" else sum(DILATIONS) * (TAPS - 1) // 2


def mixture(names: Sequence[str], weights: dict[str, float]) -> torch.Tensor:
    """Return class weights in the order of `names`, float32 (classes,).

    Raises `ConfigError` for an unknown name, listing the known ones.
    """
    for name in weights:
        if name not in names:
            known = ", ".join(names) if names else "none: it was trained without classes"
            raise ConfigError(f"class {name!r}: unknown; this network knows {known}")
    return torch.tensor([weights.get(name, 0.0) for name in names], dtype=torch.float32)
