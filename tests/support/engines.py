"""Engines to test, with small random networks, states and gate biases to test them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from support import naive, rounding
from wavenet.config import WaveNetConfig
from wavenet.engine import cpu, registry
from wavenet.engine.cpu import CpuBackend
from wavenet.engine.state import GeneratorState
from wavenet.extension import load_extension
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

UNAVAILABLE = load_extension()
needs_extension = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))

INSTRUCTION_SETS = cpu.INSTRUCTION_SETS
NEARLY_ONE = 1 - 2**-24
"""The largest number to draw with."""


class Runner:
    """An engine's backend for one network; states, samples and logits are on the CPU."""

    def __init__(self, backend):
        self.backend = backend

    def advance(
        self, state: GeneratorState, samples: torch.Tensor, gate: GateBias | None = None
    ) -> torch.Tensor:
        """Feed samples (batch, time); return logits (batch, time, classes)."""
        samples = samples.to(self.backend.device)
        return self._on_device(state, lambda moved: self.backend.advance(moved, samples, gate))

    def generate(
        self, state: GeneratorState, uniforms: torch.Tensor, gate: GateBias | None = None
    ) -> torch.Tensor:
        """Return samples (batch, time) drawn with uniforms (batch, time)."""
        uniforms = uniforms.to(self.backend.device)
        return self._on_device(state, lambda moved: self.backend.generate(moved, uniforms, gate))

    def _on_device(
        self, state: GeneratorState, call: Callable[[GeneratorState], torch.Tensor]
    ) -> torch.Tensor:
        if self.backend.device.type == "cpu":
            return call(state)
        moved = state.to(self.backend.device)
        try:
            return call(moved).cpu()
        finally:
            vars(state).update(vars(moved.to("cpu")))


@dataclass(frozen=True)
class Engine:
    """An engine in a precision and, on the CPU, with an instruction set."""

    name: str
    precision: str = "fp32"
    instruction_set: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, vars(self).values()))

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Select the instruction set for one test; skip the test if the engine cannot run here."""
        reason = registry.report()[self.name]
        if reason is not None:
            pytest.skip(f"backend {self.name}: {reason}")
        if self.instruction_set:
            use_instruction_set(self.instruction_set, monkeypatch)

    def run(self, model: WaveNet, threads: int = 1) -> Runner:
        device = "cuda" if self.name == "cuda" else "cpu"
        return Runner(registry.create(model, self.name, device, threads, self.precision))

    @property
    def slow(self) -> bool:
        """Whether a step takes milliseconds."""
        return self.name == "reference"

    def logits(
        self,
        shape: naive.Shape,
        weights: dict[str, np.ndarray],
        samples: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return float64 logits with the weights as this precision stores them; see `naive.logits`."""
        if self.precision == "int8":
            assert rows is None
            return rounding.int8_logits(shape, weights, samples)
        stored = rounding.as_bf16(weights) if self.precision == "bf16" else weights
        return naive.logits(shape, stored, samples, rows)


def _parameter(engine: Engine):
    marks = [pytest.mark.gpu] if engine.name == "cuda" else []
    return pytest.param(engine, marks=marks, id=str(engine))


_CPU = {
    precision: [Engine("cpu", precision, name) for name in INSTRUCTION_SETS]
    for precision in CpuBackend.precisions
}
COMPILED = [_parameter(engine) for engine in (*_CPU["fp32"], Engine("numba"))]
"""The engines on the CPU that spread streams over threads, in fp32."""
FP32 = [*COMPILED, _parameter(Engine("reference"))]
"""The engines on the CPU, in fp32."""
CUDA = _parameter(Engine("cuda"))
FP32_AND_CUDA = [*FP32, CUDA]
ALL_PRECISIONS = [*FP32, *(_parameter(engine) for name in ("bf16", "int8") for engine in _CPU[name])]
"""The engines on the CPU, in every precision."""


def on(engines: list) -> pytest.MarkDecorator:
    """Run a test on engines, each given as the fixture `engine`."""
    return pytest.mark.parametrize("engine", engines, indirect=True)


def use_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Select an instruction set for one test, or skip the test if the processor lacks it."""
    monkeypatch.delenv("WAVENET_CPU", raising=False)
    if name not in CpuBackend.instruction_sets():
        pytest.skip(f"this processor does not run {name}")
    monkeypatch.setenv("WAVENET_CPU", name)


def model_of(shape: naive.Shape, weights: dict[str, np.ndarray]) -> WaveNet:
    config = WaveNetConfig(
        quantization_channels=shape.classes,
        layers=len(shape.dilations),
        stacks=shape.stacks,
        kernel_size=shape.kernel_size,
        residual_channels=shape.residual,
        dilation_channels=shape.dilation,
        skip_channels=shape.skip,
        head_channels=shape.head,
    )
    assert list(config.dilations) == shape.dilations
    model = WaveNet(config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model.eval().requires_grad_(False)


def random_model(seed: int, **changes) -> tuple[naive.Shape, dict[str, np.ndarray], WaveNet]:
    rng = np.random.default_rng(seed)
    shape = naive.random_shape(rng)
    shape = naive.Shape(**{**vars(shape), **changes})
    weights = naive.random_weights(shape, rng)
    return shape, weights, model_of(shape, weights)


def zero_weights(shape: naive.Shape) -> dict[str, np.ndarray]:
    weights = naive.random_weights(shape, np.random.default_rng(0))
    return {name: np.zeros_like(value) for name, value in weights.items()}


def empty_state(shape: naive.Shape, batch: int = 1, last_sample: int = 0) -> GeneratorState:
    """Streams at position 0 with zeros in the queues: valid after `shape.context` samples were fed."""
    return GeneratorState(
        queues=torch.zeros(batch, shape.context, shape.residual),
        position=torch.zeros(batch, dtype=torch.int64),
        last_sample=torch.full((batch,), last_sample),
        stream=torch.arange(batch),
    )


def random_state(shape: naive.Shape, batch: int, seed: int) -> GeneratorState:
    """Streams at different positions, with noise in the queues."""
    torch.manual_seed(seed)
    return GeneratorState(
        queues=torch.randn(batch, shape.context, shape.residual),
        position=torch.randint(0, 1000, (batch,)),
        last_sample=torch.randint(0, shape.classes, (batch,)),
        stream=torch.arange(10, 10 + batch),
    )


def same(one: GeneratorState, other: GeneratorState) -> bool:
    """Return whether two states are equal to the bit."""
    names = ("queues", "position", "last_sample", "stream", "seed", "substream")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def random_gate(
    shape: naive.Shape, batch: int, linear: bool = False, frames: int = 4, hop: int = 7, start: int = 5
) -> GateBias:
    """Return frames of noise, which begin after the first sample and by default end before the last."""
    noise = torch.Generator().manual_seed(frames)
    values = torch.randn(batch, frames, len(shape.dilations), 2 * shape.dilation, generator=noise)
    return GateBias(values, hop, start, linear)


def select_gate(gate: GateBias | None, rows: list[int]) -> GateBias | None:
    return None if gate is None else GateBias(gate.values[rows], gate.hop, gate.start, gate.linear)


def random_samples(shape: naive.Shape, batch: int, steps: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, shape.classes, (batch, steps)))


def random_uniforms(batch: int, steps: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, steps, generator=torch.Generator().manual_seed(seed))


def relative_errors(found: torch.Tensor, exact: np.ndarray) -> np.ndarray:
    """Return the largest error of each step's logits, relative to the largest of them."""
    return np.abs(found.numpy() - exact).max(axis=-1) / np.abs(exact).max(axis=-1)


def constant_model(logits: np.ndarray) -> tuple[naive.Shape, WaveNet]:
    """A network that predicts the same distribution after every sample."""
    shape = naive.Shape(len(logits), 3, 3, 3, 3, kernel_size=2, stacks=1, layers_per_stack=2)
    weights = zero_weights(shape)
    weights["head2.bias"] = logits.astype(np.float32)
    return shape, model_of(shape, weights)


def chain_model(logits: list[list[float]], **settings: int) -> WaveNet:
    """A network whose prediction depends on the latest class only: row c has the logits after class c."""
    count = len(logits)
    widths = dict.fromkeys(
        ("residual_channels", "dilation_channels", "skip_channels", "head_channels"), count
    )
    config = WaveNetConfig(quantization_channels=count, layers=1, stacks=1, **widths, **settings)
    model = WaveNet(config)
    one = torch.eye(count)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    tensors["embedding.weight"] = one
    # In float32, tanh(20) is 1 and sigmoid(20) differs from 1 by 2e-9.
    tensors["layers.0.dilated.weight"][:count, count:] = 20 * one
    tensors["layers.0.dilated.bias"][count:] = 20.0
    tensors["skip.weight"], tensors["head1.weight"] = one, one
    tensors["head2.weight"] = torch.tensor(logits).t().contiguous()
    model.load_state_dict(tensors)
    return model.eval()
