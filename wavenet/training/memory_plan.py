"""What fits into the memory at hand: how much a training step takes, before it takes it, and what to lower.

A step is gone through with tensors that have a shape and no content (torch's fake tensors), and what would be
alive at once is counted. That costs a second or two, no memory, and no random number.
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
from wavenet.utils.memory import available_bytes, give_back_freed_blocks, out_of_memory

LARGEST_BATCH = 64
"""What `--batch auto` takes at most: beyond it a step gets slower, but hardly better."""

RESERVE = 1.1
"""By how much more room than counted is asked for, with `RESERVE_BYTES` beside it: products' own buffers and
code that is loaded late. On the CPU, with freed blocks given back, fp32 was measured at 0.98 to 1.03 of what
is counted (and 13 MB), bf16 at up to 1.02 of it and 145 MB; a GPU has not been measured."""

RESERVE_BYTES = 1 << 28

SHORTEST = 0.01
"""Seconds; a shorter segment is not proposed."""


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(each, torch.Tensor):
                self._see(each.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.bytes -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def counted_bytes(config: WaveNetConfig, training: TrainingConfig) -> int:
    """Return the bytes of all tensors that are alive at the worst moment of a step, the optimiser's included.

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
    """Return more bytes than a step takes, at once and from the sizes alone."""
    layer = (config.kernel_size + 4) * config.residual_channels + 6 * config.dilation_channels
    head = 2 * config.skip_channels + 2 * config.head_channels + 6 * config.quantization_channels + 8
    steps = round(training.segment * config.sample_rate) + config.receptive_field
    weights = (config.kernel_size * config.residual_channels + config.skip_channels) * 2
    weights *= config.layers * (config.dilation_channels + 1)
    return 8 * training.batch * steps * (config.layers * layer + head) + 32 * weights


class Need:
    """What steps of several sizes take, from two that were gone through: memory is linear in the size.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
    name : str
        The setting that varies, "batch" or "segment".
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
        """Return the counted bytes at a value."""
        return self.base + self.slope * (value - self.low)

    def largest(self, room: float) -> float:
        """Return the value up to which there is room, reserves included; less than `low` if nowhere."""
        return self.low + ((room - RESERVE_BYTES) / RESERVE - self.base) / self.slope


def fitted(
    config: WaveNetConfig,
    training: TrainingConfig,
    device: torch.device,
    auto: bool,
    tell: Callable[[str], None],
) -> TrainingConfig:
    """Return the configuration with a batch that fits; tell of one that was chosen.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
        With its precision resolved.
    device : torch.device
    auto : bool
        Choose the largest power of two, up to `LARGEST_BATCH`, for which there is memory now. Otherwise the
        batch is only looked at.
    tell : callable
        Given a line.

    Raises
    ------
    ConfigError
        If a step clearly takes more than there is; it names what would fit. Linux grants memory that is not
        there and then ends some process without a word.
    """
    room = available_bytes(device, threads=True)
    if auto:
        if room is None:
            raise ConfigError("--batch auto: this system does not say how much memory is free; give a number")
        need = Need(config, training, "batch", 1, LARGEST_BATCH)
        most = int(max(0, min(need.largest(room), LARGEST_BATCH)))
        if most < 1:
            training = dataclasses.replace(training, batch=1)
            raise ConfigError(_too_much(config, training, RESERVE * need.at(1) + RESERVE_BYTES, room))
        training = dataclasses.replace(training, batch=1 << most.bit_length() - 1)
        tell(
            f"batch    {training.batch} (auto): a step takes about {_gb(need.at(training.batch))}, "
            f"{_gb(room)} are free"
        )
    elif room is not None and rough_bytes(config, training) > room:
        need = _batches(config, training).at(training.batch)
        room = available_bytes(device, swap=True, threads=True) or 0
        if need > room:
            raise ConfigError(_too_much(config, training, need, room))
    elif not training.checkpoint_layers:
        return training
    if device.type == "cpu":
        give_back_freed_blocks()
    return training


@contextlib.contextmanager
def explained(config: WaveNetConfig, training: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Turn running out of memory into a `ConfigError` that names what would fit."""
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
    # Only here, where the exception is gone, is the step's memory free again.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    room = available_bytes(device)
    raise ConfigError(
        f"out of memory at {_size(training)}: {advice(config, training, room or 0, failed=True)}"
    )


def advice(config: WaveNetConfig, training: TrainingConfig, room: float, failed: bool = False) -> str:
    """Return the flags with which a step fits into so many bytes, as something to try.

    Parameters
    ----------
    config : WaveNetConfig
    training : TrainingConfig
    room : float
    failed : bool
        Whether a step has already run out of memory, whatever was counted: at most half of it is named.
    """
    frugal = dataclasses.replace(training, checkpoint_layers=True)
    more = "" if training.checkpoint_layers else " --checkpoint-layers"
    most = min(_batches(config, training).largest(room), training.batch // 2 if failed else math.inf)
    tried = [f"--batch {int(most)}"] if most >= 1 else []
    if more:
        other = min(_batches(config, frugal).largest(room), training.batch)
        tried += [f"--batch {int(other)}{more}"] if other >= max(1, int(most) + 1) else []
    if tried:
        return f"try {', or '.join(tried)}"
    single = dataclasses.replace(frugal, batch=1)
    shortest = 1 / config.sample_rate
    if training.segment > 2 * shortest:
        seconds = Need(config, single, "segment", shortest, training.segment).largest(room)
        seconds = min(seconds, training.segment / 2 if failed and training.batch == 1 else math.inf)
        if seconds >= SHORTEST:
            digits = 10 ** (1 - math.floor(math.log10(seconds)))
            return f"try --batch 1 --segment {math.floor(seconds * digits) / digits:g}{more}"
    for name in ("base", "small", "tiny"):
        smaller = dataclasses.replace(config, **PRESETS[name])
        if _batches(smaller, single).largest(room) >= 1:
            return f"try a smaller network: --preset {name} --batch 1{more}"
    return "free some memory, or shorten --segment and choose a smaller network"


def _batches(config: WaveNetConfig, training: TrainingConfig) -> Need:
    return Need(config, training, "batch", 1, min(max(2, training.batch), LARGEST_BATCH))


def _size(training: TrainingConfig) -> str:
    return f"--batch {training.batch} x --segment {training.segment:g} s"


def _too_much(config: WaveNetConfig, training: TrainingConfig, need: float, room: float) -> str:
    return (
        f"{_size(training)} takes about {_gb(need)} of memory and {_gb(room)} are free: "
        f"{advice(config, training, room)}"
    )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
