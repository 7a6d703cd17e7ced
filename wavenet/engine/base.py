"""The interface of the engines of the sample loop."""

from __future__ import annotations

from typing import Protocol

import torch

from wavenet.engine.state import GeneratorState
from wavenet.models.gate_bias import GateBias


class Backend(Protocol):
    """The methods of every engine; both change the state in place."""

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
            One row for each stream.

        Returns
        -------
        float32 tensor (batch, time, quantization_channels)
            The logits at index i predict samples[:, i], before it is fed.

        Raises
        ------
        BackendError
            If an argument does not fit, or the network produced non-finite logits.
        """
        ...

    def generate(
        self, state: GeneratorState, uniforms: torch.Tensor, gate_bias: GateBias | None = None
    ) -> torch.Tensor:
        """Draw samples, each stream with its own sampling settings.

        Parameters
        ----------
        state : GeneratorState
        uniforms : float32 tensor (batch, time), in [0, 1)
        gate_bias : GateBias, optional
            One row for each stream.

        Returns
        -------
        int64 tensor (batch, time)

        Raises
        ------
        BackendError
            As `advance`.
        """
        ...

    def uniforms(self, state: GeneratorState, steps: int) -> torch.Tensor:
        """Return the same numbers as `wavenet.engine.sampling.uniforms`."""
        ...
