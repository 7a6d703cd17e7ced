"""What the tests of the compiled engine share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support import naive
from wavenet.config import WaveNetConfig
from wavenet.engine import cpu
from wavenet.engine.cpu import NativeBackend
from wavenet.engine.state import GeneratorState
from wavenet.extension import load_extension
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

UNAVAILABLE = load_extension()
needs_extension = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))

INSTRUCTION_SETS = cpu.INSTRUCTION_SETS


def use_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Force an instruction set for one test, or skip it where there is none of that name."""
    monkeypatch.delenv("WAVENET_CPU", raising=False)
    if name not in NativeBackend.instruction_sets():
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


def empty_state(shape: naive.Shape, batch: int = 1, last_sample: int = 0) -> GeneratorState:
    """Streams at position 0 with zeros in the queues: meaningful once `shape.context` samples were fed."""
    return GeneratorState(
        queues=torch.zeros(batch, shape.context, shape.residual),
        position=torch.zeros(batch, dtype=torch.int64),
        last_sample=torch.full((batch,), last_sample),
        stream=torch.arange(batch),
        seed=0,
    )


def random_state(shape: naive.Shape, batch: int, seed: int) -> GeneratorState:
    """Streams that stand at different positions, with noise in the queues."""
    torch.manual_seed(seed)
    return GeneratorState(
        queues=torch.randn(batch, shape.context, shape.residual),
        position=torch.randint(0, 1000, (batch,)),
        last_sample=torch.randint(0, shape.classes, (batch,)),
        stream=torch.arange(10, 10 + batch),
        seed=0,
    )


def same(one: GeneratorState, other: GeneratorState) -> bool:
    """Return whether two states hold the same bits."""
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one) if name != "seed")


def random_gate(shape: naive.Shape, batch: int, linear: bool) -> GateBias:
    """Return frames of noise, some samples of which come before and after all frames."""
    values = torch.randn(batch, 4, len(shape.dilations), 2 * shape.dilation)
    return GateBias(values, hop=7, start=5, linear=linear)


def chain_model(logits: list[list[float]], **settings: int) -> WaveNet:
    """A network whose prediction depends on the latest class alone: row by row the logits of what follows."""
    count = len(logits)
    widths = dict.fromkeys(
        ("residual_channels", "dilation_channels", "skip_channels", "head_channels"), count
    )
    config = WaveNetConfig(quantization_channels=count, layers=1, stacks=1, **widths, **settings)
    model = WaveNet(config)
    one = torch.eye(count)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    tensors["embedding.weight"] = one
    # tanh(20) and sigmoid(20) are 1 in float32, but for 2e-9.
    tensors["layers.0.dilated.weight"][:count, count:] = 20 * one
    tensors["layers.0.dilated.bias"][count:] = 20.0
    tensors["skip.weight"], tensors["head1.weight"] = one, one
    tensors["head2.weight"] = torch.tensor(logits).t().contiguous()
    model.load_state_dict(tensors)
    return model.eval()
