"""The compiled engine: a thin layer over `torch.ops.wavenet`."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from typing import Any

import torch

from wavenet.conditioning.base import Frames
from wavenet.engine.packing import CPU_PRECISIONS, pack
from wavenet.engine.packing_conditioner import pack_conditioner
from wavenet.engine.state import GeneratorState
from wavenet.errors import BackendError
from wavenet.extension import first_line, load_extension
from wavenet.models.conditioner import LIMIT, Conditioner
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

_X86, _ARM = ("avx2", "avx512", "avx512vnni"), ("neon", "neondot")

INSTRUCTION_SETS = ("base", *_X86, *_ARM)
"""All that the engine is written for, slowest first of each kind; a processor has some of one kind."""

# Errors of csrc/bindings/operators.cpp: position and row where logits were not finite, and the text.
_ERROR = re.compile(r"wavenet:(?:nonfinite:(\d+):(\d+)|error): (.*)")


class CompiledConditioner:
    """Computes gate biases as `Conditioner` does, faster, and independently of how frames are batched.

    Parameters
    ----------
    conditioner : Conditioner
        Its weights are copied.
    """

    steady = True

    def __init__(self, conditioner: Conditioner):
        self.conditioning = conditioner.conditioning
        self.context_frames = conditioner.context_frames
        self.shape = conditioner.shape
        self.packed = pack_conditioner(conditioner)

    def gate_bias(self, frames: Frames) -> GateBias:
        """Return the gate bias of frames; see `Conditioner.gate_bias`."""
        try:
            values = torch.ops.wavenet.frame_bias(
                self.packed.data, self.packed.geometry, LIMIT, frames.values.contiguous()
            )
        except RuntimeError as error:
            raise _translated(error) from error
        if frames.conditioned_mask is not None:
            values = values * frames.conditioned_mask[:, None, None]
        first = (frames.first + self.context_frames) * self.conditioning.hop
        return GateBias(
            values.unflatten(2, self.shape), self.conditioning.hop, first, self.conditioning.linear
        )


class CpuBackend:
    """Generation by the C++ engine on the CPU.

    The environment variable WAVENET_CPU selects an instruction set of `INSTRUCTION_SETS`; by default the best
    that the processor has is used.

    Parameters
    ----------
    model : WaveNet
        Its weights are copied.
    threads : int
        Maximum number of threads over which streams are spread; a stream is never split.
    precision : str
        Format of the network's matrices. "fp32": unchanged. "bf16": 16 bits, rounded as closely as to
        bfloat16 (see `packing`), all sums in float32. "int8": 8 bits with a scale for every output,
        multiplied by inputs that are rounded to 8 bits with a scale for every vector; every instruction set
        gives the same bits. Embedding, biases and queues are always float32, so a state can be continued in
        another precision.

    Raises
    ------
    BackendError
        If the extension cannot be used here.
    """

    name = "cpu"
    precisions = CPU_PRECISIONS
    kernel = ""
    """The kernel to use, where there are several; the CPU has one for each instruction set."""

    def __init__(self, model: WaveNet, threads: int = 1, precision: str = "fp32"):
        reason = self.available()
        if reason is not None:
            raise BackendError(f"backend 'cpu' cannot run here: {reason}")
        self.device = torch.device("cpu")
        self.threads = threads
        self.precision = precision
        self.packed = pack(model, precision)
        # A call without streams reports at once what the engine does not support.
        config = model.config
        none = torch.empty(0, dtype=torch.int64)
        queues = torch.empty(0, config.queue_steps, config.residual_channels)
        self.advance(GeneratorState(queues, none, none, none), none[:, None])

    @staticmethod
    def available() -> str | None:
        """Return None if the engine can run here, or else the reason why not."""
        reason = load_extension()
        if reason is not None:
            return reason
        try:
            torch.ops.wavenet.cpu_instruction_set()
        except RuntimeError as error:
            return str(_translated(error))
        return None

    @staticmethod
    def instruction_set() -> str:
        """Return the name of the instruction set in use; only where the engine is available."""
        return torch.ops.wavenet.cpu_instruction_set()

    @staticmethod
    def instruction_sets() -> list[str]:
        """Return the names that WAVENET_CPU may have on this machine, slowest first."""
        return torch.ops.wavenet.cpu_instruction_sets().split()

    @classmethod
    def details(cls) -> list[str]:
        """Return a description for the list of engines, where this one is available."""
        found = cls.instruction_sets()
        kind = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}.get(platform.machine(), ())
        missing = [name for name in kind if name not in found]
        lines = [f"instruction set {cls.instruction_set()} of {' '.join(found)}"]
        return lines + ([f"not on this processor: {' '.join(missing)}"] if missing else [])

    @staticmethod
    def uniforms(state: GeneratorState, steps: int) -> torch.Tensor:
        """Return the same numbers as `wavenet.engine.sampling.uniforms`, faster."""
        numbers = (state.seed, state.stream, state.substream, state.position)
        return torch.ops.wavenet.uniforms(*(each.cpu().contiguous() for each in numbers), steps)

    def _kernel_for(self, batch: int) -> str:
        """Return the kernel to use for a number of streams, or "" for the engine's own choice."""
        return self.kernel

    def advance(
        self, state: GeneratorState, samples: torch.Tensor, gate_bias: GateBias | None = None
    ) -> torch.Tensor:
        """Feed given samples; see `Backend.advance`."""
        return self._call("advance", state, samples, (), gate_bias)

    def generate(
        self, state: GeneratorState, uniforms: torch.Tensor, gate_bias: GateBias | None = None
    ) -> torch.Tensor:
        """Draw samples with given uniforms; see `Backend.generate`."""
        settings = (state.temperature, state.top_k, state.top_p)
        return self._call("generate", state, uniforms, settings, gate_bias)

    def _call(
        self,
        operator: str,
        state: GeneratorState,
        inputs: torch.Tensor,
        settings: tuple[torch.Tensor, ...],
        gate_bias: GateBias | None,
    ) -> torch.Tensor:
        for name in ("queues", "position", "last_sample"):
            # The operator writes into these, so the state has to own the contiguous copy.
            setattr(state, name, getattr(state, name).contiguous())
        gate: tuple[Any, ...] = (None, 1, state.position, False)
        if gate_bias is not None:
            starts = torch.as_tensor(gate_bias.start).to(state.position).expand(state.batch).contiguous()
            gate = (_frames(gate_bias.values), gate_bias.hop, starts, gate_bias.linear)
        call: Callable[..., torch.Tensor] = getattr(torch.ops.wavenet, operator)
        try:
            return call(
                self.packed.data,
                self.packed.geometry,
                state.queues,
                state.position,
                state.last_sample,
                inputs.contiguous(),
                *(each.contiguous() for each in settings),
                *gate,
                self.threads,
                self._kernel_for(state.batch),
            )
        except RuntimeError as error:
            raise _translated(error, state, self.name) from error


def _frames(values: torch.Tensor) -> torch.Tensor:
    """Return the values of a gate bias as the operator takes them, without copying an expanded batch."""
    if values.shape[0] > 1 and values.stride(0) == 0:
        return values[:1].contiguous().expand(values.shape)
    return values.contiguous()


def _translated(
    error: RuntimeError, state: GeneratorState | None = None, backend: str = "cpu"
) -> BackendError:
    """Return an operator's error as one line, with the stream's number in place of its row."""
    found = _ERROR.search(str(error))
    if found is None:
        # Not from our code: torch's dispatcher, say, for a state on another device.
        return BackendError(f"backend {backend!r} failed: {first_line(error)}")
    position, row, text = found.groups()
    if row is not None and state is not None:
        stream = int(state.stream[int(row)])
        text = f"the network produced non-finite logits at sample {position} of stream {stream}"
    return BackendError(text)
