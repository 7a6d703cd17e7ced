"""The kinds of networks: `architecture` in a checkpoint's `config.json` selects one of these entries.

Adding a kind of network is one module for each of its parts and one entry here. The parts are named as
"module:attribute" and imported when they are used, because objectives and generators belong to packages that
import this one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from wavenet.errors import CheckpointError, ConfigError


class NetworkConfig(Protocol):
    """The part of a network's configuration that training and checkpoints need, whatever its architecture."""

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio, in Hz."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as a JSON object."""
        ...


@dataclass(frozen=True)
class Architecture:
    """One kind of network, with each part as "module:attribute".

    Attributes
    ----------
    config : str
        A dataclass derived from `JsonConfig`, with a `sample_rate` (`NetworkConfig`).
    network : str
        A `torch.nn.Module`, built from the configuration.
    objective : str
        A `wavenet.training.objective.Objective`, built from the configuration and a `TrainingConfig`.
    generator : str
        Generates audio with a network of this kind.
    """

    config: str
    network: str
    objective: str
    generator: str

    def load(self, part: str) -> Any:
        """Import a part: "config", "network", "objective" or "generator"."""
        module, _, attribute = getattr(self, part).partition(":")
        return getattr(importlib.import_module(module), attribute)


ARCHITECTURES: dict[str, Architecture] = {
    "wavenet": Architecture(
        config="wavenet.config:WaveNetConfig",
        network="wavenet.models.wavenet:WaveNet",
        objective="wavenet.training.wavenet_objective:WaveNetObjective",
        generator="wavenet.generation.generator:Generator",
    ),
}
"""Entries by the name that `config.json` contains."""


def architecture(name: object) -> Architecture:
    """Return the entry of a name; `CheckpointError` listing the known names if there is none."""
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    known = ", ".join(ARCHITECTURES)
    raise CheckpointError(f"unknown architecture {name!r}: this version reads {known}")


def architecture_name(config: NetworkConfig) -> str:
    """Return the name under which a configuration's class is registered.

    Raises `ConfigError` if it is not registered.
    """
    kind = f"{type(config).__module__}:{type(config).__qualname__}"
    for name, entry in ARCHITECTURES.items():
        if entry.config == kind:
            return name
    raise ConfigError(f"{kind}: is not the configuration of a registered architecture")
