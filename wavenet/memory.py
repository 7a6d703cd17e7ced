"""How much memory a training step takes, before it takes it."""

from __future__ import annotations

import os

from wavenet.config import TrainingConfig, WaveNetConfig
from wavenet.errors import ConfigError


def step_bytes(config: WaveNetConfig, training: TrainingConfig) -> int:
    """Estimate the bytes that a float32 step keeps for its backward pass (bfloat16 takes somewhat less)."""
    layer = (config.kernel_size + 2) * config.residual_channels + 4 * config.dilation_channels
    head = 2 * config.skip_channels + 2 * config.head_channels + 4 * config.quantization_channels
    steps = round(training.segment * config.sample_rate) + config.receptive_field
    return 4 * training.batch * steps * (config.layers * layer + head)


def physical_bytes() -> int | None:
    """Return the machine's memory, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check_memory(config: WaveNetConfig, training: TrainingConfig) -> None:
    """Raise `ConfigError` if a training step on the CPU would clearly not fit.

    Linux grants memory that is not there and then ends some process without a word.
    """
    need, memory = step_bytes(config, training), physical_bytes()
    if memory is not None and need > memory:
        fits = max(1, int(training.batch * memory / need / 2))
        raise ConfigError(
            f"a step of --batch {training.batch} x --segment {training.segment:g} s would take about "
            f"{need / 1e9:.0f} GB and this machine has {memory / 1e9:.0f}: try --batch {fits}, "
            "or a shorter --segment"
        )
