"""Weights in bf16 and int8: against float64 with rounded weights, and to the bit between instruction sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import naive, rounding
from support.engines import (
    INSTRUCTION_SETS,
    empty_state,
    model_of,
    needs_extension,
    random_gate,
    random_model,
    random_samples,
    random_state,
    random_uniforms,
    relative_errors,
    use_instruction_set,
)

from wavenet.engine import packing, registry
from wavenet.engine.cpu import CpuBackend
from wavenet.engine.sampling import Sampling
from wavenet.errors import BackendError
from wavenet.generation.generator import Generator

PRECISIONS = ["fp32", "bf16", "int8"]


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    use_instruction_set(request.param, monkeypatch)
    return request.param


def errors(shape, model, precision: str, samples: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return each step's largest error relative to its largest logit."""
    state = empty_state(shape, last_sample=int(samples[0]))
    inputs = torch.from_numpy(samples[1:])[None]
    found = CpuBackend(model, precision=precision).advance(state, inputs)[0, shape.context :]
    return relative_errors(found, exact)


def draw_samples(shape: naive.Shape, steps: int, seed: int) -> np.ndarray:
    return random_samples(shape, 1, shape.context + steps + 1, seed)[0].numpy()


@needs_extension
@pytest.mark.parametrize("seed", range(8))
def test_bf16_logits_match_float64(instruction_set, seed):
    shape, weights, model = random_model(seed, kernel_size=2 + seed % 3)
    samples = draw_samples(shape, 80, seed)
    exact = naive.logits(shape, rounding.as_bf16(weights), samples[:-1])
    assert errors(shape, model, "bf16", samples, exact).max() <= 1e-5
    # Rounding the weights makes a difference.
    assert errors(shape, model, "fp32", samples, exact).max() > 1e-5


@needs_extension
@pytest.mark.parametrize("seed", [seed for seed in range(16) if seed not in (11, 13)])
def test_int8_logits_match_float64(instruction_set, seed):
    shape, weights, model = random_model(seed, kernel_size=2 + seed % 3, skip=31 + seed, head=24 + seed)
    samples = draw_samples(shape, 80, seed)
    found = errors(shape, model, "int8", samples, rounding.int8_logits(shape, weights, samples[:-1]))
    # In none of these networks do float32 and float64 round a value to different integers. Where they do, as
    # with seeds 11 and 13, all that follows differs by steps of 1/127.
    assert found.max() <= 1e-5
    # The total error of rounding, with weights that are far rougher than trained ones.
    whole = naive.logits(shape, weights, samples[:-1])
    whole -= whole.mean(axis=1, keepdims=True)
    assert errors(shape, model, "int8", samples, whole).max() <= 0.2


def test_int8_gates_are_within_their_bound():
    x = np.linspace(-12, 12, 100_001)
    assert np.abs(rounding.rough_exp(x) / np.exp(x) - 1).max() <= 1.02e-4
    below = rounding.rough_exp(-2 * x)
    far = np.abs(x) >= 0.001
    assert np.abs((1 - below) / (1 + below) / np.where(far, np.tanh(x), 1) - 1)[far].max() <= 5.5e-4


def common_heads(seed: int) -> tuple[naive.Shape, dict[str, np.ndarray]]:
    """Return a network whose last head resembles a trained one.

    The weights of all classes have a large common part, and those of some channels are much larger.
    """
    shape, weights, _ = random_model(seed, head=24, classes=64)
    rng = np.random.default_rng(seed)
    weights["head2.weight"] *= np.exp(rng.standard_normal(24)).astype(np.float32)
    weights["head2.weight"] += 2 * rng.standard_normal(24).astype(np.float32)
    return shape, weights


@pytest.mark.parametrize("seed", range(4))
def test_balanced_heads_give_the_same_probabilities(seed):
    shape, weights = common_heads(seed)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items() if name.startswith("head")}
    balanced = {name: value.numpy() for name, value in packing.balance_heads(tensors).items()}
    expected = rounding.balance_heads(weights)
    for name, value in balanced.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    samples = draw_samples(shape, 40, seed)
    exact = log_probabilities(naive.logits(shape, weights, samples[:-1]))
    found = log_probabilities(naive.logits(shape, weights | balanced, samples[:-1]))
    assert np.abs(found - exact).max() <= 1e-4


def test_balanced_heads_lose_less_by_rounding():
    losses = []
    for seed in range(12):  # the loss of a single network varies too much
        shape, weights = common_heads(seed)
        samples = draw_samples(shape, 40, seed)
        exact = log_probabilities(naive.logits(shape, weights, samples[:-1]))
        for all_weights in (weights, rounding.balance_heads(weights)):
            heads = {name: value for name, value in all_weights.items() if name.startswith("head")}
            rounded = weights | rounding.as_int8(shape, heads)
            found = log_probabilities(naive.logits(shape, rounded, samples[:-1]))
            losses.append(np.abs(found - exact).mean())
    assert np.mean(losses[1::2]) < 0.6 * np.mean(losses[::2])


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities of each row's classes."""
    above = logits - logits.max(axis=1, keepdims=True)
    return above - np.log(np.exp(above).sum(axis=1, keepdims=True))


@needs_extension
@pytest.mark.parametrize("seed", range(6))
def test_int8_does_not_depend_on_the_instruction_set(monkeypatch, seed):
    shape, _, model = random_model(seed + 100, kernel_size=2 + seed % 3)
    backend = CpuBackend(model, precision="int8")
    gate = random_gate(shape, 3, linear=True, hop=9, start=20)
    samples, uniforms = random_samples(shape, 3, 60, seed), random_uniforms(3, 200, seed)
    results = []
    for name in CpuBackend.instruction_sets():
        monkeypatch.setenv("WAVENET_CPU", name)
        state = random_state(shape, 3, seed)
        logits = backend.advance(state, samples, gate)
        drawn = backend.generate(state.with_sampling(Sampling(0.9, 0, 0.95)), uniforms, gate)
        results.append([logits, drawn, state.queues])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@needs_extension
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_failed_stream_does_not_affect_the_others(instruction_set, precision):
    shape, weights, _ = random_model(35, residual=4, stacks=1, layers_per_stack=2, kernel_size=2, classes=8)
    weights["embedding.weight"][3] = np.nan
    backend = CpuBackend(model_of(shape, weights), precision=precision)
    given = torch.ones(4, 10, dtype=torch.int64)
    state, expected = random_state(shape, 4, 5), random_state(shape, 4, 5)
    for each in (state, expected):
        each.last_sample[:] = 1
    backend.advance(expected, given)
    given[2, 3] = 3
    with pytest.raises(BackendError, match=rf"at sample {int(state.position[2]) + 4} of stream 12$"):
        backend.advance(state, given)
    for row in (0, 1, 3):
        assert torch.equal(state.queues[row], expected.queues[row])
        assert state.position[row] == expected.position[row]
    assert state.position[2] == expected.position[2] - 6 and state.last_sample[2] == 3


@needs_extension
def test_zero_and_tiny_weights_give_finite_logits(instruction_set):
    """Scales of 0 and denormal weights cause no division by zero."""
    shape, weights, _ = random_model(37, stacks=1, layers_per_stack=2, classes=16)
    for scale in (0.0, 1e-38, 1e-42):
        model = model_of(shape, {name: value * np.float32(scale) for name, value in weights.items()})
        for precision in PRECISIONS:
            state = random_state(shape, 2, 0)
            given = torch.zeros(2, 30, dtype=torch.int64)
            logits = CpuBackend(model, precision=precision).advance(state, given)
            assert float(logits.abs().max()) <= 1e-30


@needs_extension
def test_a_state_continues_in_another_precision():
    _, _, model = random_model(5)
    engines = [Generator(model, "cpu", threads=1, precision=precision) for precision in PRECISIONS]
    state = engines[0].start(2, seed=3)
    for engine in engines:
        engine.generate(40, state)
        assert state.queues.dtype == torch.float32
    assert state.position.tolist() == [120, 120]
    # Priming does not depend on the precision.
    primer = torch.zeros(50, dtype=torch.int64)
    assert all(torch.equal(each.prime(primer).queues, engines[0].prime(primer).queues) for each in engines)


@needs_extension
def test_int8_refuses_sums_that_could_overflow():
    _, _, model = random_model(
        5, residual=32769, dilation=1, skip=1, head=1, classes=2, kernel_size=2, stacks=1, layers_per_stack=1
    )
    message = r"^kernel_size \* residual_channels = 65538: int8 supports at most 65536; use bf16 or fp32$"
    with pytest.raises(BackendError, match=message):
        Generator(model, precision="int8")
    assert Generator(model, precision="bf16").backend.precision == "bf16"


def test_unavailable_precisions_are_errors(monkeypatch):
    _, _, model = random_model(5)
    with pytest.raises(BackendError, match="unknown precision 'fp8': choose from fp32, bf16, int8"):
        Generator(model, precision="fp8")
    with pytest.raises(
        BackendError, match="'reference' cannot run here: it computes in fp32 only, not in int8"
    ):
        Generator(model, "reference", precision="int8")
    monkeypatch.setattr(CpuBackend, "available", staticmethod(lambda: "the extension was not built: why"))
    message = "no backend can generate in bf16 here: cpu: .* not built: why; numba: it computes in fp32 only"
    with pytest.raises(BackendError, match=message):
        Generator(model, precision="bf16")
    assert Generator(model).backend.name in registry.NAMES[1:]
