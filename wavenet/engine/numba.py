"""The engine that numba compiles when it is first used: fast where there is no C++ compiler."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wavenet.engine.packing import pack
from wavenet.engine.sampling import uniforms
from wavenet.engine.state import GeneratorState
from wavenet.errors import BackendError
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet
from wavenet.utils.files import user_cache

if TYPE_CHECKING:
    from wavenet.engine.numba_kernel import Network


class NumbaBackend:
    """Generation by machine code that numba makes, float32.

    Parameters
    ----------
    model : WaveNet
        Its weights are copied.
    threads : int
        Most threads to spread streams over; a stream is never split.

    Raises
    ------
    BackendError
        If numba cannot be used here, or fails.
    """

    name = "numba"
    precisions = ("fp32",)

    def __init__(self, model: WaveNet, threads: int = 1, precision: str = "fp32"):
        reason = self.available()
        if reason is not None:
            raise BackendError(f"backend 'numba' cannot run here: {reason}")
        from wavenet.engine import numba_kernel

        self.device = torch.device("cpu")
        self.threads = threads
        self.precision = precision
        packed = pack(model)
        self.weights = packed.data.numpy()
        self.network, self.layers = _places(packed.geometry, len(self.weights))
        try:
            with _kept_for_the_user():
                self._run = numba_kernel.compiled()
        except Exception as error:
            raise BackendError(
                f"backend 'numba' failed to compile: {_first_line(error)}; try backend reference"
            ) from error

    @staticmethod
    def available() -> str | None:
        """Return None if numba can be used, or else the reason why not."""
        return _unusable()

    @staticmethod
    def details() -> list[str]:
        """Return a description for the list of engines."""
        return ["compiled at first use, cached on disk"]

    @staticmethod
    def uniforms(state: GeneratorState, steps: int) -> torch.Tensor:
        """Return the numbers to draw with; see `wavenet.engine.sampling.uniforms`."""
        return uniforms(state, steps)

    def advance(
        self, state: GeneratorState, samples: torch.Tensor, gate_bias: GateBias | None = None
    ) -> torch.Tensor:
        """Feed given samples; see `Backend.advance`."""
        _check_range("samples", samples, self.network.classes)
        logits = torch.empty(*samples.shape, self.network.classes)
        self._spread(state, samples.contiguous(), torch.empty(0, 0), logits, gate_bias)
        return logits

    def generate(
        self, state: GeneratorState, uniforms: torch.Tensor, gate_bias: GateBias | None = None
    ) -> torch.Tensor:
        """Draw samples with given uniforms; see `Backend.generate`."""
        samples = torch.empty(uniforms.shape, dtype=torch.int64)
        self._spread(state, samples, uniforms.contiguous(), torch.empty(0, 0, 0), gate_bias)
        return samples

    def _spread(
        self,
        state: GeneratorState,
        samples: torch.Tensor,
        uniforms: torch.Tensor,
        logits: torch.Tensor,
        gate_bias: GateBias | None,
    ) -> None:
        """Run the streams on as many threads as there are and may be used."""
        self._check(state, samples, gate_bias)
        for name in ("queues", "position", "last_sample"):
            # The kernel writes into these, so the state has to own the contiguous copy.
            setattr(state, name, getattr(state, name).contiguous())
        failed = np.full(state.batch, -1)
        tensors = (state.position, state.last_sample, samples, uniforms, logits)
        settings = (state.temperature, state.top_k, state.top_p)
        arrays = (
            state.queues.flatten(1).numpy(),
            *(tensor.numpy() for tensor in tensors),
            *(tensor.contiguous().numpy() for tensor in settings),
            *_gate(gate_bias),
        )

        def run(first: int, end: int) -> None:
            scratch = torch.zeros(self.network.scratch()).numpy()
            slots, order = np.zeros(self.network.layers, np.int64), np.zeros(self.network.classes, np.int64)
            self._run(
                first, end, self.weights, self.network, self.layers, scratch, slots, order, *arrays, failed,
            )  # fmt: skip

        count = min(self.threads, state.batch)
        if count <= 1:
            run(0, state.batch)
        else:
            edges = [state.batch * index // count for index in range(count + 1)]
            try:
                # An interrupt is raised once all are done: no stream moves on behind the caller's back.
                with ThreadPoolExecutor(count) as pool:
                    list(pool.map(run, edges[:-1], edges[1:]))
            except RuntimeError as error:
                raise BackendError(f"backend 'numba' failed: {_first_line(error)}") from error
        rows = np.flatnonzero(failed >= 0)
        if len(rows):
            raise BackendError(
                f"the network produced non-finite logits at sample {failed[rows[0]]} of stream "
                f"{int(state.stream[rows[0]])}"
            )

    def _check(self, state: GeneratorState, samples: torch.Tensor, gate_bias: GateBias | None) -> None:
        """Refuse what would lead the kernel, which looks at no bounds, past the end of its arrays."""
        net, batch = self.network, state.batch
        _check_shape("queues", state.queues, (batch, net.queue_steps, net.residual))
        _check_shape("samples", samples, (batch, -1))
        _check_shape("position", state.position, (batch,))
        _check_shape("last_sample", state.last_sample, (batch,))
        _check_range("last_sample", state.last_sample, net.classes)
        _check_range("position", state.position, 2**60)
        _check_shape("temperature", state.temperature, (batch,))
        _check_shape("top_k", state.top_k, (batch,))
        _check_shape("top_p", state.top_p, (batch,))
        if gate_bias is not None:
            _check_shape("gate_bias", gate_bias.values, (batch, -1, net.layers, 2 * net.dilation))


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    fits = len(tensor.shape) == len(shape)
    if not fits or any(want not in (-1, have) for have, want in zip(tensor.shape, shape, strict=True)):
        expected = ", ".join("any" if size < 0 else str(size) for size in shape)
        raise BackendError(f"{name} is {tuple(tensor.shape)}: must be ({expected})")


def _check_range(name: str, tensor: torch.Tensor, end: int) -> None:
    if tensor.dtype != torch.int64:
        raise BackendError(f"{name} is {tensor.dtype}: must be torch.int64")
    for value in (tensor.min(), tensor.max()) if tensor.numel() else ():
        if not 0 <= int(value) < end:
            raise BackendError(f"{name} contains {int(value)}: must be 0 to {end - 1}")


def _gate(gate_bias: GateBias | None) -> tuple[Any, ...]:
    """Return values, hop, start and linear as the kernel takes them; an expanded batch is not copied."""
    if gate_bias is None:
        return np.zeros((1, 1, 1, 1), np.float32), 0, np.zeros(1, np.int64), False
    values = gate_bias.values
    if values.shape[0] > 1 and values.stride(0) == 0:
        values = values[:1]
    start = torch.as_tensor(gate_bias.start).reshape(-1)
    return values.contiguous().numpy(), gate_bias.hop, start.contiguous().numpy(), gate_bias.linear


def _places(geometry: list[int], size: int) -> tuple[Network, np.ndarray]:
    """Return what the kernel has to know of weights packed in fp32; see `wavenet.engine.packing`."""
    from wavenet.engine import numba_kernel

    _, classes, residual, dilation, skip, head, taps, layers, *dilations = geometry
    padded = [-(-width // 16) * 16 for width in (classes, residual, dilation, skip, head)]
    classes_padded, residual_padded, dilation_padded, skip_padded, head_padded = padded
    at = 0

    def place(values: int) -> int:
        nonlocal at
        at += values
        return at - values

    place(classes * residual_padded)
    rows, ring = [], 0
    for index, each in enumerate(dilations):
        depth, last = (taps - 1) * each, index == layers - 1
        dilated = place(2 * dilation_padded * taps * residual)
        dilated_bias = place(2 * dilation_padded)
        residual_bias = -1 if last else place(residual_padded)
        output = place(((0 if last else residual_padded) + skip_padded) * dilation)
        rows.append((each, depth, ring, dilated, dilated_bias, residual_bias, output))
        ring += depth
    network = numba_kernel.Network(
        classes, residual, dilation, skip, head, taps, layers, *padded,
        queue_steps=ring,
        skip_bias=place(skip_padded),
        head1=place(head_padded * skip),
        head1_bias=place(head_padded),
        head2=place(classes_padded * head),
        head2_bias=place(classes_padded),
    )  # fmt: skip
    if at != size:
        raise BackendError(f"backend 'numba': {size} packed weights, expected {at}")
    return network, np.array(rows, np.int64)


@contextlib.contextmanager
def _kept_for_the_user() -> Iterator[None]:
    """Have numba keep machine code in the user's cache: beside the package it would outlast its removal."""
    from numba.core import config as found

    # Its names are made while it is loaded.
    config: Any = found
    before = config.CACHE_DIR
    # Where there is no home, numba finds a place.
    with contextlib.suppress(RuntimeError):
        config.CACHE_DIR = before or str(user_cache() / "numba")
    try:
        yield
    finally:
        config.CACHE_DIR = before


@functools.cache
def _unusable() -> str | None:
    try:
        from numba.core import config
    except Exception as error:
        # Not only where it is missing: it refuses to load beside a numpy that it does not know.
        return f"numba cannot be loaded: {_first_line(error)}"
    if getattr(config, "DISABLE_JIT", False):
        return "NUMBA_DISABLE_JIT is set: nothing would be compiled"
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
