"""The interface of the engines of the sample loop."""

from __future__ import annotations

from typing import Protocol

import torch

from wavenet.engine.sampling import Sampling
from wavenet.engine.state import GeneratorState
from wavenet.models.gate_bias import GateBias


class Backend(Protocol):
    """What every engine offers; both entries change the state in place."""

    name: str
    device: torch.device
    precision: str

    def advance(
        self, state: GeneratorState, samples: torch.Tensor, gate_bias: GateBias | None = None
    ) -> torch.Tensor:
        """Feed given samples (teacher forcing).

        Parameters
        ----------
        state : GeneratorState
        samples : int64 tensor (batch, time)
        gate_bias : GateBias, optional

        Returns
        -------
        float32 tensor (batch, time, quantization_channels)
            The logits at index i predict samples[:, i], before it is fed.
        """
        ...

    def generate(
        self,
        state: GeneratorState,
        uniforms: torch.Tensor,
        sampling: Sampling,
        gate_bias: GateBias | None = None,
    ) -> torch.Tensor:
        """Draw samples.

        Parameters
        ----------
        state : GeneratorState
        uniforms : float32 tensor (batch, time), in [0, 1)
        sampling : Sampling
        gate_bias : GateBias, optional

        Returns
        -------
        int64 tensor (batch, time)
        """
        ...
