"""Raw-audio WaveNet: train on a folder of recordings, generate new audio faster than real time."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wavenet.config import PRESETS, TrainingConfig, WaveNetConfig, preset
    from wavenet.engine.sampling import Sampling
    from wavenet.errors import AudioError, BackendError, CheckpointError, ConfigError, WaveNetError
    from wavenet.generation.generator import Generator, GeneratorState
    from wavenet.models.wavenet import WaveNet

# Imported on first use, so that a command prints --help without importing torch.
_MODULES = {
    "PRESETS": "config",
    "TrainingConfig": "config",
    "WaveNetConfig": "config",
    "preset": "config",
    "AudioError": "errors",
    "BackendError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "WaveNetError": "errors",
    "Generator": "generation.generator",
    "GeneratorState": "generation.generator",
    "Sampling": "engine.sampling",
    "WaveNet": "models.wavenet",
}

__all__ = [
    "PRESETS",
    "AudioError",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "Generator",
    "GeneratorState",
    "Sampling",
    "TrainingConfig",
    "WaveNet",
    "WaveNetConfig",
    "WaveNetError",
    "__version__",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"wavenet.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'wavenet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
