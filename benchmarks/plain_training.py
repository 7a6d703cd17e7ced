"""The baseline of training: a WaveNet of 1-d convolutions over a one-hot signal, as commonly implemented.

Every convolution is padded to keep the length, the skip path is summed over the whole length in every layer,
filter and gate are separate convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from wavenet.config import WaveNetConfig


class PlainWaveNet(nn.Module):
    """Takes int64 classes (batch, time); returns logits (batch, classes, time) for the sample after each."""

    def __init__(self, config: WaveNetConfig):
        super().__init__()
        self.config = config
        classes, width, gate = (
            config.quantization_channels,
            config.residual_channels,
            config.dilation_channels,
        )
        self.entry = nn.Conv1d(classes, width, 1)
        self.filters, self.gates, self.residuals, self.skips = (nn.ModuleList() for _ in range(4))
        for dilation in config.dilations:
            for branch in (self.filters, self.gates):
                branch.append(nn.Conv1d(width, gate, config.kernel_size, dilation=dilation))
            self.residuals.append(nn.Conv1d(gate, width, 1))
            self.skips.append(nn.Conv1d(gate, config.skip_channels, 1))
        self.head1 = nn.Conv1d(config.skip_channels, config.head_channels, 1)
        self.head2 = nn.Conv1d(config.head_channels, classes, 1)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the logits; the input before the first sample is zero."""
        one_hot = F.one_hot(samples, self.config.quantization_channels).transpose(1, 2).float()
        hidden = self.entry(one_hot)
        total = torch.zeros(())
        layers = zip(self.config.dilations, self.filters, self.gates, self.residuals, self.skips, strict=True)
        for dilation, filtered, gated, residual, skip in layers:
            padded = F.pad(hidden, ((self.config.kernel_size - 1) * dilation, 0))
            activation = torch.tanh(filtered(padded)) * torch.sigmoid(gated(padded))
            total = total + skip(activation)
            hidden = hidden + residual(activation)
        return self.head2(F.relu(self.head1(F.relu(total))))
