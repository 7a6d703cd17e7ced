"""Memory of a training step: how much it needs, computed before it runs, and which settings would fit.

A step runs with tensors that have a shape and no content (torch's fake tensors), and the bytes allocated at
the same time are counted. That takes a second or two, no memory, and no random number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wavenet.conditioning import registry
from wavenet.conditioning.base import Frames
from wavenet.conditioning.segments import Conditions
from wavenet.config import PRESETS, TrainingConfig, WaveNetConfig
from wavenet.data.batch import Segments
from wavenet.errors import ConfigError
from wavenet.training.wavenet_objective import WaveNetObjective
from wavenet.utils.memory import available_bytes, out_of_memory, return_freed_blocks

LARGEST_BATCH = 64
"""Largest batch that is chosen automatically: larger ones make a step slower, but hardly better."""

RESERVE = 1.1
"""Factor on the counted bytes, besides `RESERVE_BYTES`, for the buffers of matrix products and code that
is loaded late. On the CPU, with freed blocks returned, fp32 was measured at 0.98 to 1.03 of the counted bytes
(and 13 MB), bf16 at up to 1.02 of them and 145 MB; a GPU has not been measured."""

RESERVE_BYTES = 1 << 28

SHORTEST_SEGMENT = 0.01
"""Seconds; shorter segments are not proposed."""


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are allocated at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(result, torch.Tensor):
                self._add(result.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def freed(_: Any) -> None:
            self.bytes -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def counted_bytes(config: WaveNetConfig, training: TrainingConfig) -> int:
    """Return the peak bytes of all tensors during a step, the optimiser's included.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
        With its precision resolved to "fp32" or "bf16".
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    steps = max(1, round(training.segment * config.sample_rate))
    objective = WaveNetObjective(config, training)
    # The random state is the same afterwards: dropout would set it.
    with torch.random.fork_rng(devices=[]), FakeTensorMode(), _LiveBytes() as live:
        model = objective.build()
        inputs = torch.zeros(training.batch, config.receptive_field - 1 + steps, dtype=torch.long)
        targets = torch.zeros(training.batch, steps, dtype=torch.long)
        segments = Segments(inputs, targets, _frames(config, training.batch, steps))
        losses = objective.losses(model, segments, targets.numel(), torch.device("cpu"), (0,))
        losses.objective.backward()
        del losses
    # Adam's two moments and the averaged weights are allocated all the time.
    return live.peak + 3 * 4 * sum(parameter.numel() for parameter in model.parameters())


def _frames(config: WaveNetConfig, batch: int, steps: int) -> Frames | None:
    if config.conditioning is None:
        return None
    first, stop = Conditions(config).frame_range(steps)
    return Frames(torch.zeros(batch, registry.channels(config.conditioning), stop - first), first)


def rough_bytes(config: WaveNetConfig, training: TrainingConfig) -> int:
    """Return an upper bound of the bytes of a step, quickly, from the sizes alone."""
    layer = (config.kernel_size + 4) * config.residual_channels + 6 * config.dilation_channels
    head = 2 * config.skip_channels + 2 * config.head_channels + 6 * config.quantization_channels + 8
    steps = round(training.segment * config.sample_rate) + config.receptive_field
    weights = (config.kernel_size * config.residual_channels + config.skip_channels) * 2
    weights *= config.layers * (config.dilation_channels + 1)
    return 8 * training.batch * steps * (config.layers * layer + head) + 32 * weights


class MemoryModel:
    """Bytes of a step as a linear function of one setting, from two values at which they are counted.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
    name : str
        The setting, "batch" or "segment".
    low, high : float
        Its values at which memory is counted.
    """

    def __init__(
        self, config: WaveNetConfig, training: TrainingConfig, name: str, low: float, high: float
    ) -> None:
        self.low = low
        self.base = counted_bytes(config, dataclasses.replace(training, **{name: low}))
        rest = counted_bytes(config, dataclasses.replace(training, **{name: high})) - self.base
        self.slope = rest / (high - low)

    def at(self, value: float) -> float:
        """Return the bytes at a value, without reserves."""
        return self.base + self.slope * (value - self.low)

    def largest(self, available: float) -> float:
        """Return the largest value that fits, reserves included; less than `low` if none does."""
        return self.low + ((available - RESERVE_BYTES) / RESERVE - self.base) / self.slope


def fit_batch(
    config: WaveNetConfig,
    training: TrainingConfig,
    device: torch.device,
    auto: bool,
    report: Callable[[str], None],
) -> TrainingConfig:
    """Return the configuration with a batch that fits into memory.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
        With its precision resolved.
    device : torch.device
    auto : bool
        Choose the largest power of two, up to `LARGEST_BATCH`, that fits now. Otherwise the batch is only
        checked.
    report : callable
        Gets a line about a batch that was chosen.

    Raises
    ------
    ConfigError
        If a step clearly needs more memory than is available; the message proposes settings that fit. Without
        this check Linux grants the memory and later kills a process without a message.
    """
    available = available_bytes(device, threads=True)
    if auto:
        training = _largest_batch(config, training, available, report)
    elif available is not None and rough_bytes(config, training) > available:
        needed = _batches(config, training).at(training.batch)
        available = available_bytes(device, swap=True, threads=True) or 0
        if needed > available:
            raise ConfigError(_too_much(config, training, needed, available))
    elif not training.checkpoint_layers:
        return training
    if device.type == "cpu":
        return_freed_blocks()
    return training


def _largest_batch(
    config: WaveNetConfig, training: TrainingConfig, available: float | None, report: Callable[[str], None]
) -> TrainingConfig:
    if available is None:
        raise ConfigError("auto: this system does not report free memory; give a number", argument="batch")
    model = MemoryModel(config, training, "batch", 1, LARGEST_BATCH)
    most = int(max(0, min(model.largest(available), LARGEST_BATCH)))
    if most < 1:
        training = dataclasses.replace(training, batch=1)
        raise ConfigError(_too_much(config, training, RESERVE * model.at(1) + RESERVE_BYTES, available))
    training = dataclasses.replace(training, batch=1 << most.bit_length() - 1)
    report(
        f"batch    {training.batch} (auto): a step takes about {_gb(model.at(training.batch))}, "
        f"{_gb(available)} are free"
    )
    return training


@contextlib.contextmanager
def explain_out_of_memory(
    config: WaveNetConfig, training: TrainingConfig, device: torch.device
) -> Iterator[None]:
    """Turn an out-of-memory error into a `ConfigError` that proposes settings that fit."""
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
    # Only after the except block, which holds the exception, is the memory of the step free again.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    available = available_bytes(device)
    raise ConfigError(
        f"out of memory at {_size(training)}: {advice(config, training, available or 0, failed=True)}"
    )


def advice(config: WaveNetConfig, training: TrainingConfig, available: float, failed: bool = False) -> str:
    """Return settings with which a step fits into so many bytes, as a proposal.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
    available : float
    failed : bool
        Whether a step has already run out of memory, whatever was counted: at most half is proposed then.
    """
    frugal = dataclasses.replace(training, checkpoint_layers=True)
    more = "" if training.checkpoint_layers else " checkpoint_layers=true"
    most = min(_batches(config, training).largest(available), training.batch // 2 if failed else math.inf)
    proposals = [f"batch={int(most)}"] if most >= 1 else []
    if more:
        other = min(_batches(config, frugal).largest(available), training.batch)
        proposals += [f"batch={int(other)}{more}"] if other >= max(1, int(most) + 1) else []
    if proposals:
        return f"try {', or '.join(proposals)}"
    single = dataclasses.replace(frugal, batch=1)
    seconds = _longest_segment(config, single, available)
    seconds = min(seconds, training.segment / 2 if failed and training.batch == 1 else math.inf)
    if seconds >= SHORTEST_SEGMENT:
        digits = 10 ** (1 - math.floor(math.log10(seconds)))
        return f"try batch=1 segment={math.floor(seconds * digits) / digits:g}{more}"
    for name in ("base", "small", "tiny"):
        smaller = dataclasses.replace(config, **PRESETS[name])
        if _batches(smaller, single).largest(available) >= 1:
            return f"try a smaller network: preset={name} batch=1{more}"
    return "free some memory, or use a shorter segment and a smaller network"


def _longest_segment(config: WaveNetConfig, training: TrainingConfig, available: float) -> float:
    """Return the length in seconds that fits; 0 if the segment cannot be made shorter."""
    shortest = 1 / config.sample_rate
    if training.segment <= 2 * shortest:
        return 0.0
    return MemoryModel(config, training, "segment", shortest, training.segment).largest(available)


def _batches(config: WaveNetConfig, training: TrainingConfig) -> MemoryModel:
    return MemoryModel(config, training, "batch", 1, min(max(2, training.batch), LARGEST_BATCH))


def _size(training: TrainingConfig) -> str:
    return f"batch={training.batch} segment={training.segment:g}"


def _too_much(config: WaveNetConfig, training: TrainingConfig, needed: float, available: float) -> str:
    return (
        f"{_size(training)}: a step takes about {_gb(needed)} of memory and {_gb(available)} are free: "
        f"{advice(config, training, available)}"
    )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
