"""What a trainer needs from a kind of network: how it is built, what a step minimises, how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from wavenet.config import TrainingConfig
from wavenet.data.batch import Segments
from wavenet.data.dataset import Dataset
from wavenet.models import registry
from wavenet.models.registry import NetworkConfig


class Losses(NamedTuple):
    """Losses of one batch, both the mean over its targets, in nats.

    Attributes
    ----------
    objective : float tensor ()
        Minimised; with everything that regularises it.
    cross_entropy : float tensor ()
        Recorded; comparable with the validation score.
    """

    objective: torch.Tensor
    cross_entropy: torch.Tensor


class Objective(Protocol):
    """Training of one kind of network; registered in `wavenet.models.registry`.

    Built from a network configuration and a `TrainingConfig`.
    """

    def settings(self) -> dict[str, Any]:
        """Return the network's settings as a flat JSON object, for the run's `effective.json`."""
        ...

    def build(self) -> nn.Module:
        """Return a network with random weights, drawn from torch's generator."""
        ...

    def fit_normalization(self, model: nn.Module, draw: Callable[[int], Segments]) -> None:
        """Set the normalisation of a network's inputs before its first step.

        `draw` returns so many training segments, the same ones in every process.
        """
        ...

    def losses(
        self, model: nn.Module, segments: Segments, count: int, device: torch.device, key: tuple[int, ...]
    ) -> Losses:
        """Return the losses of one batch, with a graph for the gradient.

        Parameters
        ----------
        model : nn.Module
            On `device`.
        segments : Segments
            On the CPU.
        count : int
            Targets in them that are not ignored; at least 1.
        device : torch.device
        key : tuple of int
            Seed, step, and number of the batch in the step: all randomness depends on it alone.
        """
        ...

    def score(
        self,
        model: nn.Module,
        windows: Iterable[Segments],
        device: torch.device,
        sums: Callable[[float, float], tuple[float, ...]],
    ) -> float:
        """Return the validation score in bits per sample; NaN if there is nothing to score.

        `sums` adds up (nats, samples) over all processes.
        """
        ...

    def sample(
        self, model: nn.Module, data: Dataset, steps: int, seed: int, stop: Callable[[], bool]
    ) -> torch.Tensor | None:
        """Return free-running audio, float (steps,) on the CPU; None if `stop` returned true."""
        ...


def objective_for(config: NetworkConfig, training: TrainingConfig) -> Objective:
    """Return the objective of a network configuration's architecture.

    Raises `ConfigError` if the architecture is not registered.
    """
    name = registry.architecture_name(config)
    return registry.architecture(name).load("objective")(config, training)
