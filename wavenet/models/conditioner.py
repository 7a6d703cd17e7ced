"""From frames to the gate bias of all layers.

All conditioning inputs are packed into one tensor of frames (batch, channels, frames): the weights of the
classes, then the features. `Conditioner` maps them to a bias on every layer's gate.
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
    """Computes the gate bias of frames: convolutions over neighbouring frames, then a projection per layer.

    The projection starts at zero, so how soon a network learns to follow its conditioning depends on the
    scale of the projection's inputs. They are kept near one and vary as much as possible between frames:
    features are centred (`fit_normalization`) and the activations are odd functions. A component shared by
    all frames would be learnt first, as a plain bias at a hundred times the learning rate; with features
    that hardly change it would grow until the gates saturate. The bias is therefore limited to
    [-LIMIT, LIMIT].

    Class weights pass through one matrix only, so that the bias of a mixture is the mixture of biases (except
    for the limit), and zero weights add nothing.

    Parameters
    ----------
    config : WaveNetConfig
        A conditioned network's.

    Attributes
    ----------
    features : Kind or None
        Kind of the features; None for a network with classes only.
    context_frames : int
        Frames before and after a frame that its bias depends on.

    Raises
    ------
    ConfigError
        If the network is unconditional, or its settings do not suit a kind of conditioning.
    """

    steady = False
    """A matrix product may round differently when it has more rows."""

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
        # Every layer already has a bias.
        self.projection = nn.Linear(width, self.shape[0] * self.shape[1], bias=False)
        # Training starts as an unconditional network.
        nn.init.zeros_(self.projection.weight)

    @property
    def convolutions(self) -> list[nn.Conv1d]:
        """Convolutions over frames, in order; empty without features."""
        layers = () if self.features is None else self.frames
        return [layer for layer in layers if isinstance(layer, nn.Conv1d)]

    def pack_weights(self) -> None:
        """Store the final weights in the layout that `forward` multiplies, which saves a transposition."""
        for convolution in self.convolutions:
            weight = convolution.weight.detach().transpose(1, 2).contiguous().transpose(1, 2)
            convolution.weight = nn.Parameter(weight, requires_grad=False)

    @property
    def gain(self) -> float:
        """Factor of the projection."""
        return GAIN / math.sqrt(self.conditioning.conditioning_channels)

    def fit_normalization(self, frames: torch.Tensor) -> None:
        """Set the mean and scale that normalize the features, from some frames, before training starts.

        Each channel has its own scale, unless the kind's `shared_scale` asks for one of all channels.

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
        """Return the gate bias of all frames except the first and last `context_frames`.

        Parameters
        ----------
        frames : float32 tensor (batch, channels, frames)

        Returns
        -------
        float32 tensor (batch, frames - 2 * context_frames, layers, 2 * dilation_channels)
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
    """Return values (batch, frames, channels), divided by sqrt(1 + mean square) in each frame.

    Unlike plain root mean square normalization (Zhang and Sennrich 2019) it keeps soft notes softer than loud
    ones, and silence zero.
    """
    return F.rms_norm(hidden.float(), hidden.shape[-1:], eps=1.0)


GAIN = 3.0
"""Factor of the projection, before division by the square root of its width."""

LIMIT = 5.0
"""Largest magnitude of a gate bias: tanh and sigmoid are flat beyond it."""

LEAST_DEVIATION = 0.01
"""Smallest standard deviation that features are divided by: nearly constant ones are not amplified."""
