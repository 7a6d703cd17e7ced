"""Conditioning as one mechanism: a bias on every layer's gate, known per frame.

Whatever a network is told stands in one tensor of frames (batch, channels, frames): a weight for each
class, then the features. `Conditioner` makes the bias of them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from wavenet.conditioning import registry
from wavenet.conditioning.base import DILATIONS, TAPS, Frames, require_conditioning
from wavenet.config import WaveNetConfig
from wavenet.models.gate_bias import GateBias


class Conditioner(nn.Module):
    """Makes the gate bias of frames: convolutions over neighbouring frames, then a projection per layer.

    How soon a network follows depends on what the projection, which begins at zero, is fed. Values are kept
    near one, and as different from frame to frame as they can be: features are centred
    (`fit_normalization`) and the activations odd. A part that all frames share would be learnt first, as a
    mere bias with a hundred times the learning rate, and with features that hardly change go on to shut the
    gates for good; no bias leaves
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
        registry.check(config)
        self.conditioning = conditioning = require_conditioning(config)
        self.features = registry.feature_kind(conditioning)
        self.context_frames = registry.context_frames(conditioning)
        self.shape = (config.layers, 2 * config.dilation_channels)
        width = conditioning.conditioning_channels
        if conditioning.class_names:
            self.classes = nn.Linear(len(conditioning.class_names), width, bias=False)
            nn.init.normal_(self.classes.weight, std=0.3)
        if self.features is not None:
            count = self.features.channels(conditioning)
            channels = (count, width, width)
            self.centre = nn.Buffer(torch.zeros(count, 1))
            self.scale = nn.Buffer(torch.ones(count, 1))
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
        layers = () if self.features is None else self.frames
        return [layer for layer in layers if isinstance(layer, nn.Conv1d)]

    def pack_weights(self) -> None:
        """Lay weights that will change no more so that `forward` need not turn them each time."""
        for convolution in self.convolutions:
            weight = convolution.weight.detach().transpose(1, 2).contiguous().transpose(1, 2)
            convolution.weight = nn.Parameter(weight, requires_grad=False)

    @property
    def gain(self) -> float:
        """What the projection is multiplied with."""
        return GAIN / math.sqrt(self.conditioning.conditioning_channels)

    def fit_normalization(self, frames: torch.Tensor) -> None:
        """Let features be centred and scaled as they come in some frames, before training begins.

        What frames have in common tells nothing, but would be learnt first. Each mel band has a scale of its
        own; the rows of a score share one, as those that are hardly used are not to outweigh the others.

        Parameters
        ----------
        frames : float32 tensor (batch, channels, frames)
        """
        if self.features is None:
            return
        rows = frames[:, len(self.conditioning.class_names) :].transpose(0, 1).flatten(1)
        deviation = rows.var(dim=1, keepdim=True)
        if self.features.shared_scale:
            deviation = deviation.mean().expand_as(deviation)
        self.centre.copy_(rows.mean(dim=1, keepdim=True))
        self.scale.copy_(deviation.sqrt().clamp(min=LEAST_DEVIATION).reciprocal())

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the gate bias of all frames but the first and last `context_frames`.

        Parameters
        ----------
        frames : float32 tensor (batch, channels, frames)

        Returns
        -------
        float32 tensor (batch, frames - 2 * context, layers, 2 * dilation_channels)
        """
        count, context = len(self.conditioning.class_names), self.context_frames
        hidden: torch.Tensor | None = None
        if self.features is not None:
            found = ((frames[:, count:] - self.centre) * self.scale).transpose(1, 2)
            for number, (convolution, dilation) in enumerate(zip(self.convolutions, DILATIONS, strict=True)):
                found = found if number == 0 else torch.tanh(found)
                steps = found.shape[1] - (TAPS - 1) * dilation
                taps = [found[:, tap * dilation : tap * dilation + steps] for tap in range(TAPS)]
                matrix = convolution.weight.transpose(1, 2).flatten(1)
                found = rms_normalized(F.linear(torch.cat(taps, dim=2), matrix, convolution.bias))
            hidden = found
        if count:
            weights = frames[:, :count, context : frames.shape[2] - context].transpose(1, 2)
            mixed = self.classes(weights)
            hidden = mixed if hidden is None else hidden + mixed
        assert hidden is not None
        batch, length, _ = hidden.shape
        bias = LIMIT * torch.tanh(self.projection(hidden).float() * (self.gain / LIMIT))
        return bias.reshape(batch, length, *self.shape)

    def gate_bias(self, frames: Frames) -> GateBias:
        """Return the gate bias of frames, without the first and last `context_frames` of them."""
        first = (frames.first + self.context_frames) * self.conditioning.hop
        values = self(frames.values)
        if frames.conditioned_mask is not None:
            values = values * frames.conditioned_mask[:, None, None, None]
        return GateBias(values, self.conditioning.hop, first, self.conditioning.linear)


def rms_normalized(hidden: torch.Tensor) -> torch.Tensor:
    """Return values (batch, frames, channels) with a root mean square below 1 in each frame.

    They are divided by sqrt(1 + mean square): root mean square normalisation (Zhang and Sennrich 2019), but
    that soft notes stay softer than loud ones, and silence stays silence.
    """
    return F.rms_norm(hidden.float(), hidden.shape[-1:], eps=1.0)


GAIN = 3.0
"""How much a unit of the projection weighs, beside the square root of its width."""

LIMIT = 5.0
"""Of a gate's bias: tanh and sigmoid are flat beyond."""

LEAST_DEVIATION = 0.01
"""Of a feature: one that hardly changes is not blown up."""
