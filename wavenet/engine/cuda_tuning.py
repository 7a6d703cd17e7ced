"""Which CUDA kernel is the fastest for how many streams: measured on a device, and remembered for it.

All kernels give the same bits, so what is remembered changes how long something takes and nothing else.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from wavenet import __version__
from wavenet.engine.state import GeneratorState
from wavenet.utils.files import atomic_output, user_cache

TILE = 8
"""Streams that every kernel takes together: fewer are not sooner."""

STEPS = 512
REPEATS = 3

Fastest = list[tuple[int, str]]
"""For so many streams, and all numbers down to the one before, this kernel; ascending."""


def path() -> Path:
    """Return the file in which is remembered what was measured."""
    return user_cache() / "cuda-kernels.json"


def identity(device: torch.device, geometry: list[int]) -> str:
    """Return what a measurement holds for: a kind of device, this version, and a network's shape."""
    properties = torch.cuda.get_device_properties(device)
    kind = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
    return f"{kind}, wavenet {__version__}: {' '.join(map(str, geometry))}"


def _all() -> dict[str, Any]:
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remembered(key: str) -> Fastest:
    """Return what was measured for an `identity`; nothing if that was not, or cannot be read."""
    try:
        return [(int(streams), str(kernel)) for streams, kernel in _all()[key]]
    except (KeyError, TypeError, ValueError):
        return []


def remember(key: str, found: Fastest) -> None:
    """Keep what was measured. Raises `AudioError` if the file cannot be written."""
    path().parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**_all(), key: found}, indent=1) + "\n"
    with atomic_output(path()) as stream:
        stream.write(text.encode())


def kernel_for(found: Fastest, batch: int) -> str:
    """Return the kernel for so many streams; "" where that was not measured.

    It serves them: a kernel that has room for more streams has room for these.
    """
    return next((kernel for streams, kernel in found if batch <= streams), "")


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds between two CUDA events around all that a call starts on the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def measure(
    engine: Any,
    start: Callable[[int], GeneratorState],
    most: int,
    clock: Callable[[Callable[[], object]], float] = seconds_of,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield numbers of streams, each twice the one before, and how many samples per second each kernel makes.

    Parameters
    ----------
    engine : CudaBackend
        That is to choose among all kernels; while it is measured, it is made to use one or the other.
    start : callable
        Returns so many fresh streams on the device.
    most : int
        The first number of streams that is as large is the last.
    clock : callable, optional
    """
    batch, before = TILE, engine.kernel
    try:
        while True:
            rates = {}
            for name, told in engine.kernels(batch).items():
                if told.startswith("no: "):
                    continue
                engine.kernel = name
                state, uniforms = start(batch), torch.rand(batch, STEPS, device=engine.device)

                def work(state=state, uniforms=uniforms) -> None:
                    engine.generate(state, uniforms)

                work()
                rates[name] = batch * STEPS / statistics.median(clock(work) for _ in range(REPEATS))
            yield batch, rates
            if batch >= most:
                return
            batch *= 2
    finally:
        engine.kernel = before
