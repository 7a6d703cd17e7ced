"""The CUDA kernels' source, compiled for the host and run there a thread at a time."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from wavenet.conditioning import GateBias
from wavenet.model import WaveNet
from wavenet.packing import PackedWeights, pack
from wavenet.state import GeneratorState, Sampling

CSRC = Path(__file__).resolve().parents[1] / "csrc"
NONE = 0x7F7F7F7F7F7F7F7F
TILES = (8, 16, 32, 64)


def compiler() -> list[str] | None:
    """Return the command of a C++ compiler, or None."""
    named = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    return named if shutil.which(named[0]) else None


@functools.cache
def library() -> ctypes.CDLL:
    """Compile the kernels once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", f"-I{CSRC}"]
        sources = [str(CSRC / "cuda" / "host_run.cpp"), str(CSRC / "core" / "network.cpp")]
        subprocess.run([*(compiler() or ["c++"]), *flags, *sources, "-o", str(path)], check=True)
        loaded = ctypes.CDLL(str(path))
    loaded.wavenet_cuda_shared_bytes.restype = ctypes.c_int64
    return loaded


def _pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


class HostKernel:
    """`stream_cta` with a tile of `streams`; `backward` takes the threads of every phase last to first."""

    def __init__(
        self, model: WaveNet, streams: int = 8, backward: bool = False, packed: PackedWeights | None = None
    ):
        self.packed = packed or pack(model)
        self.classes = model.config.quantization_channels
        self.streams = streams
        self.backward = backward

    def _geometry(self) -> tuple[ctypes.Array, ctypes.c_int64]:
        entries = self.packed.geometry
        return (ctypes.c_int64 * len(entries))(*entries), ctypes.c_int64(len(entries))

    def shared_bytes(self) -> int:
        weights = (_pointer(self.packed.data), ctypes.c_int64(self.packed.data.nbytes))
        return library().wavenet_cuda_shared_bytes(*self._geometry(), *weights, ctypes.c_int(self.streams))

    def _call(
        self,
        state: GeneratorState,
        given: torch.Tensor | None,
        logits: torch.Tensor | None,
        uniforms: torch.Tensor | None,
        drawn: torch.Tensor | None,
        sampling: Sampling,
        gate: GateBias | None,
    ) -> np.ndarray:
        """Return the report: what was refused, then the position at which each stream failed."""
        whole = given if given is not None else uniforms
        assert whole is not None
        batch, steps = whole.shape
        report = torch.full((3 + batch,), NONE)
        values = None if gate is None else gate.values
        frames, stride = (0, 0) if values is None else (values.shape[1], values[0].numel())
        count = ctypes.c_int64
        status = library().wavenet_cuda_host_run(
            *self._geometry(),
            *(_pointer(self.packed.data), count(self.packed.data.nbytes)),
            *(count(batch), count(steps)),
            *map(_pointer, (state.queues, state.position, state.last_sample)),
            *map(_pointer, (given, logits, uniforms, drawn)),
            *(ctypes.c_double(sampling.temperature), count(sampling.top_k), ctypes.c_double(sampling.top_p)),
            *(_pointer(values), count(frames), count(stride)),
            *(count(gate.hop if gate else 1), count(gate.start if gate else 0)),
            ctypes.c_int(bool(gate and gate.linear)),
            *(_pointer(report), ctypes.c_int(self.streams), ctypes.c_int(self.backward)),
        )
        assert status == 0
        return report.numpy()

    def advance(
        self, state: GeneratorState, samples: torch.Tensor, gate: GateBias | None = None
    ) -> tuple[torch.Tensor, np.ndarray]:
        logits = torch.full((*samples.shape, self.classes), torch.nan)
        report = self._call(state, samples.contiguous(), logits, None, None, Sampling(), gate)
        return logits, report

    def generate(
        self, state: GeneratorState, uniforms: torch.Tensor, sampling: Sampling, gate: GateBias | None = None
    ) -> tuple[torch.Tensor, np.ndarray]:
        drawn = torch.full(uniforms.shape, -1)
        report = self._call(state, None, None, uniforms.contiguous(), drawn, sampling, gate)
        return drawn, report
