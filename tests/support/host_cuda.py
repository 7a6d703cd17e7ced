"""Runs the source of the CUDA kernels on the CPU, one thread at a time."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavenet.engine.packing import PackedWeights, pack
from wavenet.engine.state import GeneratorState
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

CSRC = Path(__file__).resolve().parents[2] / "csrc"
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
        flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", f"-I{CSRC}"]
        names = (
            *("checks/cuda_on_host/host_run.cpp", "cuda/pipeline/plan.cpp"),
            *("cuda/select_kernel.cpp", "core/network.cpp"),
        )
        sources = [str(CSRC / name) for name in names]
        subprocess.run([*(compiler() or ["c++"]), *flags, *sources, "-o", str(path)], check=True)
        loaded = ctypes.CDLL(str(path))
    loaded.wavenet_cuda_shared_bytes.restype = ctypes.c_int64
    loaded.wavenet_cuda_stage_plan.restype = ctypes.c_int64
    loaded.wavenet_cuda_select_kernel.restype = None
    return loaded


def _pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


@dataclass(frozen=True)
class Stages:
    """The resources of a pipeline and the seed of the order in which its blocks run.

    If `max_polls` is 0, messages travel through queues, and message number `dropped` is lost. Otherwise each
    block is a thread, messages travel through the kernels' mailboxes, and those of step `dropped` are lost.
    """

    tiles: int = 1
    blocks: int = 16
    shared_bytes: int = 227 * 1024
    mail_is_shared: bool = True
    seed: int = 0
    dropped: int = -1
    max_polls: int = 0

    def room(self) -> list[ctypes.c_int64 | ctypes.c_int]:
        """Return the resources as arguments of the library."""
        sizes = (self.tiles, self.blocks, self.shared_bytes)
        return [*map(ctypes.c_int64, sizes), ctypes.c_int(self.mail_is_shared)]


class HostKernel:
    """A kernel on the CPU; `backward` runs the threads of every phase in reverse order.

    Without `stages`, runs `stream_cta` with tiles of `streams` streams; with them, the pipelines of
    `stage_cluster` and `stage_grid`.
    """

    def __init__(
        self,
        model: WaveNet,
        streams: int = 8,
        backward: bool = False,
        packed: PackedWeights | None = None,
        stages: Stages | None = None,
    ):
        self.packed = packed or pack(model)
        self.classes = model.config.quantization_channels
        self.streams = streams
        self.backward = backward
        self.stages = stages or Stages(tiles=0)

    def _network(self) -> list[Any]:
        entries, data = self.packed.geometry, self.packed.data
        packed = (_pointer(data), ctypes.c_int64(data.nbytes))
        return [(ctypes.c_int64 * len(entries))(*entries), ctypes.c_int64(len(entries)), *packed]

    def shared_bytes(self) -> int:
        return library().wavenet_cuda_shared_bytes(*self._network(), ctypes.c_int(self.streams))

    def stage_plan(self) -> list[int]:
        """Return the plan for `stages` as serialized numbers; see `support.stage_plans`."""
        numbers = (ctypes.c_int64 * 100_000)()
        count = library().wavenet_cuda_stage_plan(
            *self._network(), *self.stages.room(), numbers, ctypes.c_int64(len(numbers))
        )
        return numbers[:count]

    def select_kernel(self, batch: int, device: list[int], name: str | None) -> str:
        """Return the selected kernel, or why there is none; without a name, a description of all kernels."""
        text = ctypes.create_string_buffer(4096)
        properties = (ctypes.c_int64 * len(device))(*device)
        encoded = None if name is None else name.encode()
        library().wavenet_cuda_select_kernel(
            *self._network(), ctypes.c_int64(batch), properties, encoded, text, ctypes.c_int64(len(text))
        )
        return text.value.decode()

    def _call(
        self,
        state: GeneratorState,
        forced: torch.Tensor | None,
        logits: torch.Tensor | None,
        uniforms: torch.Tensor | None,
        output: torch.Tensor | None,
        gate: GateBias | None,
    ) -> np.ndarray:
        """Return the report: invalid inputs, the block that timed out, where each stream failed."""
        whole = forced if forced is not None else uniforms
        assert whole is not None
        batch, steps = whole.shape
        start = 0 if gate is None else gate.start
        starts = torch.as_tensor(start).expand(batch).contiguous()
        report = torch.full((4 + batch,), NONE)
        values = None if gate is None else gate.values
        frames, stride = (0, 0) if values is None else (values.shape[1], values[0].numel())
        count = ctypes.c_int64
        status = library().wavenet_cuda_host_run(
            *self._network(),
            *(count(batch), count(steps)),
            *map(_pointer, (state.queues, state.position, state.last_sample)),
            *map(_pointer, (forced, logits, uniforms, output)),
            *map(_pointer, (state.temperature, state.top_k, state.top_p)),
            *(_pointer(values), count(frames), count(stride)),
            *(count(gate.hop if gate else 1), _pointer(starts)),
            ctypes.c_int(bool(gate and gate.linear)),
            *(_pointer(report), ctypes.c_int(self.streams), ctypes.c_int(self.backward)),
            *(*self.stages.room(), count(self.stages.seed), count(self.stages.dropped)),
            ctypes.c_int(self.stages.max_polls),
        )
        assert status == 0
        return report.numpy()

    def advance(
        self, state: GeneratorState, samples: torch.Tensor, gate: GateBias | None = None
    ) -> tuple[torch.Tensor, np.ndarray]:
        logits = torch.full((*samples.shape, self.classes), torch.nan)
        report = self._call(state, samples.contiguous(), logits, None, None, gate)
        return logits, report

    def generate(
        self, state: GeneratorState, uniforms: torch.Tensor, gate: GateBias | None = None
    ) -> tuple[torch.Tensor, np.ndarray]:
        output = torch.full(uniforms.shape, -1)
        report = self._call(state, None, None, uniforms.contiguous(), output, gate)
        return output, report
