"""WaveNet in its parallel form, which defines what the network computes.

Logits at time t predict sample t from the samples before it. Every recording and every stream is preceded by
silence without end. Activations are never padded with zeros, so that the parallel form, the queues of the
sample loop and the context of training segments agree.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from wavenet.conditioning.base import Frames
from wavenet.config import WaveNetConfig
from wavenet.errors import ConfigError
from wavenet.models import native_layers
from wavenet.models.conditioner import Conditioner
from wavenet.models.gate_bias import GateBias
from wavenet.models.serialization import (
    WEIGHTS_FILE,
    check_tensors,
    new_directory,
    read_config,
    read_tensors,
    write_network,
)


class ResidualLayer(nn.Module):
    """One gated, dilated causal layer (van den Oord et al. 2016, figure 4), on (batch, time, channels)."""

    def __init__(self, config: WaveNetConfig, dilation: int, last: bool, dropout: float = 0.0):
        super().__init__()
        self.dilation = dilation
        self.taps = config.kernel_size
        self.context = (config.kernel_size - 1) * dilation
        channels = config.dilation_channels
        self.dilated = nn.Linear(config.kernel_size * config.residual_channels, 2 * channels)
        # Nothing reads the residual output of the last layer.
        self.residual = None if last else nn.Linear(channels, config.residual_channels)
        self.dropout = dropout

    @property
    def weights(self) -> native_layers.LayerWeights:
        """All parameters."""
        dilated, residual = self.dilated, self.residual
        output = (None, None) if residual is None else (residual.weight, residual.bias)
        return native_layers.LayerWeights(self.dilation, dilated.weight, dilated.bias, *output)

    def gate(self, inputs: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the gated activation, (batch, time - context, dilation_channels)."""
        steps = inputs.shape[1] - self.context
        taps = [inputs[:, tap * self.dilation : tap * self.dilation + steps] for tap in range(self.taps)]
        activation = self.dilated(torch.cat(taps, dim=-1))
        if bias is not None:
            activation = activation + bias
        filtered, gated = activation.chunk(2, dim=-1)
        return torch.tanh(filtered) * torch.sigmoid(gated)

    def forward(
        self, inputs: torch.Tensor, bias: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the gated activation and the next layer's input (None after the last layer)."""
        activation = self.gate(F.dropout(inputs, self.dropout, self.training), bias)
        if self.residual is None:
            return activation, None
        return activation, inputs[:, self.context :] + self.residual(activation)


class WaveNet(nn.Module):
    """A stack of dilated causal convolutions over mu-law classes.

    Inside the network channels are the last dimension, so that every convolution is one matrix product.

    Parameters
    ----------
    config : WaveNetConfig
    checkpoint_layers : bool
        Store only the input of every layer and recompute the rest in the backward pass: less memory for one
        more forward pass. Gradients are equal up to rounding.
    dropout : float
        Probability of each value of a dilated convolution's input, in training mode.
    """

    def __init__(self, config: WaveNetConfig, checkpoint_layers: bool = False, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.checkpoint_layers = checkpoint_layers
        self.dropout = dropout
        self.embedding = nn.Embedding(config.quantization_channels, config.residual_channels)
        self.layers = nn.ModuleList(
            ResidualLayer(config, dilation, last=index == config.layers - 1, dropout=dropout)
            for index, dilation in enumerate(config.dilations)
        )
        # The skip convolutions of all layers and their sum are one product over the concatenated gates.
        self.skip = nn.Linear(config.layers * config.dilation_channels, config.skip_channels)
        self.head1 = nn.Linear(config.skip_channels, config.head_channels)
        self.head2 = nn.Linear(config.head_channels, config.quantization_channels)
        # Last, so that a seed gives the other layers the same initial weights as without conditioning.
        self.conditioner = None if config.conditioning is None else Conditioner(config)

    @property
    def residual_layers(self) -> list[ResidualLayer]:
        """The dilated layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, ResidualLayer)]

    @property
    def parameter_count(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(
        self, samples: torch.Tensor, gate_bias: GateBias | None = None, position: int = 0
    ) -> torch.Tensor:
        """Predict the sample after each complete receptive field ("valid" mode).

        Parameters
        ----------
        samples : int64 tensor (batch, receptive_field - 1 + time)
            Classes; the first `receptive_field` of them give the first prediction.
        gate_bias : GateBias, optional
        position : int
            Position in the stream of the first predicted sample; matters only to `gate_bias`.

        Returns
        -------
        float tensor (batch, quantization_channels, time)
            Logits; those at index i predict the sample that follows samples[:, receptive_field - 1 + i].

        Raises
        ------
        ConfigError
            If there are fewer samples than `receptive_field`.
        """
        steps = samples.shape[1] - self.config.receptive_field + 1
        if steps < 1:
            raise ConfigError(
                f"{samples.shape[1]} samples are fewer than the receptive field of "
                f"{self.config.receptive_field}: put silence (class {self.config.silence}) before them"
            )
        hidden, end = self.embedding(samples), position + steps
        drops = self.dropout > 0 and self.training
        if native_layers.usable(hidden) and not self.checkpoint_layers and not drops:
            layers = [layer.weights for layer in self.residual_layers]
            heads = [(head.weight, head.bias) for head in (self.skip, self.head1, self.head2)]
            return native_layers.heads(
                native_layers.gates(hidden, layers, steps, gate_bias, end), heads
            ).transpose(1, 2)
        sum_up = self._skip_frugally if self.checkpoint_layers else self._skip
        skip = sum_up(hidden, steps, gate_bias, end)
        return self.head2(torch.relu(self.head1(torch.relu(skip)))).transpose(1, 2)

    def _skip(
        self, hidden: torch.Tensor | None, steps: int, gate_bias: GateBias | None, end: int
    ) -> torch.Tensor:
        """Return the sum of the skip outputs for the `steps` positions before `end`."""
        gates = []
        for index, layer in enumerate(self.residual_layers):
            assert hidden is not None
            bias = self._bias(gate_bias, index, end, hidden, layer)
            activation, hidden = layer(hidden, bias)
            gates.append(activation[:, -steps:])
        return self.skip(torch.cat(gates, dim=-1))

    def _skip_frugally(
        self, hidden: torch.Tensor | None, steps: int, gate_bias: GateBias | None, end: int
    ) -> torch.Tensor:
        """Return the same as `_skip`, storing only every layer's input for the backward pass."""

        def compute(index: int, layer: ResidualLayer, inputs: torch.Tensor, weight: torch.Tensor) -> Any:
            # Computed in here, or the bias of every sample would be stored.
            bias = self._bias(gate_bias, index, end, inputs, layer)
            activation, outputs = layer(inputs, bias)
            return F.linear(activation[:, -steps:], weight), outputs

        skip = part = None
        weights = self.skip.weight.split(self.config.dilation_channels, dim=1)
        for index, layer in enumerate(self.residual_layers):
            # With dropout, the second computation must draw the same random numbers.
            part, hidden = checkpoint(
                compute,
                index,
                layer,
                hidden,
                weights[index],
                use_reentrant=False,
                preserve_rng_state=self.dropout > 0 and self.training,
            )
            skip = part + self.skip.bias if skip is None else skip.add_(part)
        assert skip is not None and part is not None
        return skip.to(part.dtype)

    def layer_inputs(
        self, samples: torch.Tensor, gate_bias: GateBias | None = None, position: int = 0
    ) -> list[torch.Tensor]:
        """Return the content of each layer's queue after these samples.

        Parameters
        ----------
        samples : int64 tensor (batch, receptive_field - 1)
        gate_bias : GateBias, optional
        position : int
            Position in the stream of the sample that would be predicted next.

        Returns
        -------
        list of float tensors (batch, (kernel_size - 1) * dilation, residual_channels)
            The latest inputs of each layer, oldest first.
        """
        hidden = self.embedding(samples)
        inputs = []
        for index, layer in enumerate(self.residual_layers):
            inputs.append(hidden[:, -layer.context :])
            if layer.residual is not None:
                bias = self._bias(gate_bias, index, position, hidden, layer)
                _, hidden = layer(hidden, bias)
        return inputs

    def gate_bias_for(self, frames: Frames | None) -> GateBias | None:
        """Return the gate bias of frames; None for None or for an unconditional network."""
        return None if frames is None or self.conditioner is None else self.conditioner.gate_bias(frames)

    def _bias(
        self, gate_bias: GateBias | None, index: int, end: int, hidden: torch.Tensor, layer: ResidualLayer
    ) -> torch.Tensor | None:
        """Return a layer's bias for the positions before `end` that it computes from its input."""
        if gate_bias is None:
            return None
        steps = hidden.shape[1] - layer.context
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        return gate_bias.at(end - steps, steps, index, dtype)

    def save_pretrained(self, directory: str | os.PathLike[str], half: bool = False) -> None:
        """Write `config.json` and `model.safetensors` into a directory, replacing what was there.

        With `half` weights are rounded to float16, half the size; `ConfigError` if one is too large for it.
        """
        with new_directory(Path(directory)) as target:
            write_network(target, self.config, self.state_dict(), half)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> WaveNet:
        """Load a network from a directory written by `save_pretrained`, on the CPU, in evaluation mode.

        Raises `CheckpointError` if anything is missing, damaged, or does not fit the configuration.
        """
        config = read_config(Path(directory))
        path = Path(directory) / WEIGHTS_FILE
        tensors = read_tensors(path)
        # Initial values cost milliseconds. The meta device would avoid them, but drawing them there imports
        # torch's compiler, which takes as long as importing torch.
        with torch.random.fork_rng(devices=[]):
            model = cls(config)
        check_tensors(path, tensors, model.state_dict())
        model.load_state_dict(tensors, assign=True)
        return model.eval().requires_grad_(False)
