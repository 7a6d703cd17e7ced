"""Weights in bf16 and int8: against float64 with weights rounded here, and to the bit where promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import naive
from support.engines import (
    INSTRUCTION_SETS,
    empty_state,
    model_of,
    needs_extension,
    random_model,
    random_state,
    use_instruction_set,
)

from wavenet.engine import packing, registry
from wavenet.engine.cpu import NativeBackend
from wavenet.engine.sampling import Sampling
from wavenet.errors import BackendError
from wavenet.generation.generator import Generator
from wavenet.models.gate_bias import GateBias

PRECISIONS = ["fp32", "bf16", "int8"]


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request, monkeypatch):
    use_instruction_set(request.param, monkeypatch)
    return request.param


def is_matrix(name: str) -> bool:
    return name.endswith("weight") and not name.startswith("embedding")


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Round to 8 significant bits, ties to even."""
    fraction, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(fraction * 256) / 256, exponent).astype(np.float32)


def to_words(matrix: np.ndarray) -> np.ndarray:
    """Round the matrix of one branch as bf16 keeps it: outputs o and o + 16 of every 32 share a word.

    The upper one is the whole word, of all that end in the lower one's 16 bits the nearest.
    """
    kept = to_bf16(matrix)
    for first in range(0, len(matrix), 32):
        upper = matrix[first + 16 : first + 32]
        tails = kept[first : first + len(upper)].view(np.uint32) >> 16
        near = upper.view(np.uint32) & 0xFFFF0000
        words = np.stack([near - 0x10000, near, near + 0x10000]) | tails
        distance = np.abs(words.view(np.float32).astype(np.float64) - upper)
        best = np.take_along_axis(words, distance.argmin(0)[np.newaxis], 0)[0]
        kept[first + 16 : first + 32] = best.view(np.float32)
    return kept


def as_bf16(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round the matrices of a network as bf16 keeps them."""
    rounded = dict(weights)
    for name, value in weights.items():
        if is_matrix(name):
            branches = np.split(value, 2) if "dilated" in name else [value]
            rounded[name] = np.concatenate([to_words(branch) for branch in branches])
    return rounded


def integers(matrix: np.ndarray, most: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers from -most to most that stand for rows of values, and the rows' scales."""
    scale = np.abs(matrix).max(-1, keepdims=True) / most
    return np.rint(np.divide(matrix, scale, where=scale > 0, out=np.zeros(matrix.shape))), scale


def carrying(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers that stand for rows of weights, and scales that end in 2^15 + a row's sum."""
    whole, scale = integers(matrix)
    upper = ((scale.astype(np.float32).view(np.uint32) + 0x8000) >> 16) << 16
    scale = (upper + 0x8000).view(np.float32)
    for _ in range(2):
        whole = np.rint(matrix / scale.astype(np.float64))
        scale = (upper + 0x8000 + whole.sum(1, keepdims=True).astype(np.int64)).astype(np.uint32)
        scale = scale.view(np.float32)
    return whole, scale.astype(np.float64)


def split_by_layer(shape: naive.Shape, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round to int8 as the engine must: each layer's share of the skip sum is a matrix of its own."""
    rounded = {}
    for name, value in weights.items():
        if not is_matrix(name):
            rounded[name] = value
            continue
        parts = np.split(value, len(shape.dilations), 1) if name == "skip.weight" else [value]
        rounded[name] = np.concatenate([np.multiply(*carrying(part.astype(np.float64))) for part in parts], 1)
    return rounded


def int8_logits(shape: naive.Shape, weights: dict[str, np.ndarray], fed: np.ndarray) -> np.ndarray:
    """The float64 logits of a network that rounds weights and vectors to 8 bits; see naive.logits.

    Its gates are rough, and of what all classes' logits have in common it knows nothing.
    """
    exact = split_by_layer(shape, naive.balance_heads(weights))

    def product(vectors: np.ndarray, matrix: np.ndarray, most: int = 127) -> np.ndarray:
        whole, scale = integers(vectors, most)
        return (whole * scale) @ matrix.astype(np.float64).T

    hidden = exact["embedding.weight"][fed].astype(np.float64)
    skip = np.zeros((len(fed), shape.skip)) + exact["skip.bias"]
    for layer, dilation in enumerate(shape.dilations):
        name = f"layers.{layer}"
        context = (shape.kernel_size - 1) * dilation
        time = len(hidden) - context
        taps = [hidden[tap * dilation : tap * dilation + time] for tap in range(shape.kernel_size)]
        total = product(np.concatenate(taps, 1), exact[f"{name}.dilated.weight"])
        total += exact[f"{name}.dilated.bias"]
        below = naive.rough_exp(-2 * total[:, : shape.dilation])
        output = (1 - below) / (1 + below) / (1 + naive.rough_exp(-total[:, shape.dilation :]))
        share = exact["skip.weight"][:, layer * shape.dilation : (layer + 1) * shape.dilation]
        skip = skip[len(skip) - time :] + product(output, share)
        if f"{name}.residual.weight" in exact:
            moved = product(output, exact[f"{name}.residual.weight"]) + exact[f"{name}.residual.bias"]
            hidden = hidden[context:] + moved
    # What is never negative takes all of an unsigned byte.
    middle = product(np.maximum(skip, 0), exact["head1.weight"], 255) + exact["head1.bias"]
    return product(np.maximum(middle, 0), exact["head2.weight"], 255) + exact["head2.bias"]


def errors(
    shape, model, precision: str, samples: np.ndarray, exact: np.ndarray, batch: int = 1
) -> np.ndarray:
    """Return each step's largest error relative to its largest logit, of the last of equal streams."""
    state = empty_state(shape, batch, last_sample=int(samples[0]))
    given = torch.from_numpy(samples[1:]).expand(batch, -1)
    found = NativeBackend(model, precision=precision).advance(state, given)[-1].numpy()[shape.context :]
    return np.abs(found - exact).max(axis=1) / np.abs(exact).max(axis=1)


def draw_samples(shape: naive.Shape, steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, shape.classes, shape.context + steps + 1)


@needs_extension
@pytest.mark.parametrize("seed", range(8))
def test_bf16_logits_match_float64_with_the_rounded_weights(instruction_set, seed):
    shape, weights, model = random_model(seed, kernel_size=2 + seed % 3)
    samples = draw_samples(shape, 80, seed)
    exact = naive.logits(shape, as_bf16(weights), samples[:-1])
    assert errors(shape, model, "bf16", samples, exact).max() <= 1e-5
    # And it is these weights that make the difference.
    assert errors(shape, model, "fp32", samples, exact).max() > 1e-5


@needs_extension
@pytest.mark.parametrize("seed", [seed for seed in range(16) if seed not in (11, 13)])
def test_int8_logits_match_float64_with_the_rounded_weights_and_vectors(instruction_set, seed):
    shape, weights, model = random_model(seed, kernel_size=2 + seed % 3, skip=31 + seed, head=24 + seed)
    samples = draw_samples(shape, 80, seed)
    found = errors(shape, model, "int8", samples, int8_logits(shape, weights, samples[:-1]))
    # In none of these networks a value lies so near the middle between two integers that float32 and float64
    # round it differently; where one does, all that follows differs by steps of 1/127.
    assert found.max() <= 1e-5
    # What rounding costs in all; the weights here are far rougher than trained ones.
    whole = naive.logits(shape, weights, samples[:-1])
    whole -= whole.mean(axis=1, keepdims=True)
    assert errors(shape, model, "int8", samples, whole).max() <= 0.2


def test_the_rough_gates_are_within_their_bound():
    x = np.linspace(-12, 12, 100_001)
    assert np.abs(naive.rough_exp(x) / np.exp(x) - 1).max() <= 1.02e-4
    below = naive.rough_exp(-2 * x)
    far = np.abs(x) >= 0.001
    assert np.abs((1 - below) / (1 + below) / np.where(far, np.tanh(x), 1) - 1)[far].max() <= 5.5e-4


def common_heads(seed: int) -> tuple[naive.Shape, dict[str, np.ndarray]]:
    """Return a network whose last head is as trained ones are.

    Its classes have much in common, and some of its channels far larger weights than others.
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
    expected = naive.balance_heads(weights)
    for name, value in balanced.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    samples = draw_samples(shape, 40, seed)
    exact = log_probabilities(naive.logits(shape, weights, samples[:-1]))
    found = log_probabilities(naive.logits(shape, weights | balanced, samples[:-1]))
    assert np.abs(found - exact).max() <= 1e-4


def test_balanced_heads_lose_less_by_rounding():
    losses = []
    for seed in range(12):  # what one network loses is chance
        shape, weights = common_heads(seed)
        samples = draw_samples(shape, 40, seed)
        exact = log_probabilities(naive.logits(shape, weights, samples[:-1]))
        for all_weights in (weights, naive.balance_heads(weights)):
            heads = {name: value for name, value in all_weights.items() if name.startswith("head")}
            rounded = weights | split_by_layer(shape, heads)
            found = log_probabilities(naive.logits(shape, rounded, samples[:-1]))
            losses.append(np.abs(found - exact).mean())
    assert np.mean(losses[1::2]) < 0.6 * np.mean(losses[::2])


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities of each row's classes."""
    above = logits - logits.max(axis=1, keepdims=True)
    return above - np.log(np.exp(above).sum(axis=1, keepdims=True))


@needs_extension
@pytest.mark.parametrize(
    "widths",
    [(5, 7, 9, 11, 16), (64, 64, 256, 64, 256), (48, 24, 80, 100, 300), (17, 33, 130, 65, 129)],
)
@pytest.mark.parametrize("batch", [1, 7])
def test_every_block_width_is_right(instruction_set, widths, batch):
    names = ("residual", "dilation", "skip", "head", "classes")
    sizes = dict(zip(names, widths, strict=True))
    shape, weights, model = random_model(3, **sizes, kernel_size=2, stacks=2, layers_per_stack=3)
    samples = draw_samples(shape, 20, 4)
    for precision, exact in (
        ("fp32", naive.logits(shape, weights, samples[:-1])),
        ("bf16", naive.logits(shape, as_bf16(weights), samples[:-1])),
        ("int8", int8_logits(shape, weights, samples[:-1])),
    ):
        found = errors(shape, model, precision, samples, exact, batch)
        assert np.median(found) <= 1e-5
        assert found.max() <= (0.02 if precision == "int8" else 1e-5)


@needs_extension
@pytest.mark.parametrize("seed", range(6))
def test_int8_gives_the_same_bits_on_every_instruction_set(monkeypatch, seed):
    shape, _, model = random_model(seed + 100, kernel_size=2 + seed % 3)
    backend = NativeBackend(model, precision="int8")
    gate = GateBias(torch.randn(3, 4, len(shape.dilations), 2 * shape.dilation), 9, 20, True)
    given = torch.from_numpy(np.random.default_rng(seed).integers(0, shape.classes, (3, 60)))
    results = []
    for name in NativeBackend.instruction_sets():
        monkeypatch.setenv("WAVENET_CPU", name)
        state = random_state(shape, 3, seed)
        logits = backend.advance(state, given, gate)
        uniforms = torch.rand(3, 200, generator=torch.Generator().manual_seed(seed))
        samples = backend.generate(state, uniforms, Sampling(0.9, 0, 0.95), gate)
        results.append([logits, samples, state.queues])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@needs_extension
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [2, 3, 5, 12, 41])
def test_a_stream_is_the_same_bits_in_any_group(instruction_set, precision, batch):
    """Whatever streams share a register block, a group or a thread with it, and whatever the chunks."""
    shape, _, model = random_model(31, stacks=1, layers_per_stack=3, kernel_size=3, skip=70, dilation=33)
    gate = GateBias(torch.randn(batch, 3, len(shape.dilations), 2 * shape.dilation), 9, 100, True)
    given = torch.from_numpy(np.random.default_rng(2).integers(0, shape.classes, (batch, 12)))
    uniforms = torch.rand(batch, 12, generator=torch.Generator().manual_seed(1))

    def run(threads: int, chunk: int, rows: list[int]):
        backend = NativeBackend(model, threads, precision)
        state = random_state(shape, batch, 4).select(rows)
        bias = GateBias(gate.values[rows], gate.hop, gate.start, gate.linear)
        logits = [backend.advance(state, part, bias) for part in given[rows].split(chunk, 1)]
        drawn = [backend.generate(state, part, Sampling(), bias) for part in uniforms[rows].split(chunk, 1)]
        return torch.cat(logits, 1), torch.cat(drawn, 1), state.queues, state.position, state.last_sample

    together = run(1, 12, list(range(batch)))
    for threads, chunk in ((1, 5), (2, 12), (3, 1)):
        assert all(map(torch.equal, run(threads, chunk, list(range(batch))), together))
    for row in {0, batch // 2, batch - 1}:
        alone = run(1, 7, [row])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))


@needs_extension
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel_size", [2, 4])
def test_feeding_many_steps_at_once_leaves_what_drawing_them_one_by_one_does(
    instruction_set, precision, kernel_size
):
    """Longer than the largest ring and than a block of steps, with rings of one step among them."""
    shape, _, model = random_model(32, stacks=2, layers_per_stack=4, kernel_size=kernel_size, residual=7)
    gate = GateBias(torch.randn(3, 5, len(shape.dilations), 2 * shape.dilation), 21, 400, True)
    backend = NativeBackend(model, 2, precision)
    drawing, feeding = random_state(shape, 3, 6), random_state(shape, 3, 6)
    uniforms = torch.rand(3, 100, generator=torch.Generator().manual_seed(2))
    drawn = backend.generate(drawing, uniforms, Sampling(), gate)
    backend.advance(feeding, drawn, gate)
    for name in ("queues", "position", "last_sample"):
        assert torch.equal(getattr(feeding, name), getattr(drawing, name)), name


@needs_extension
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_stream_that_fails_leaves_its_neighbours_alone(instruction_set, precision):
    shape, weights, _ = random_model(35, residual=4, stacks=1, layers_per_stack=2, kernel_size=2, classes=8)
    weights["embedding.weight"][3] = np.nan
    backend = NativeBackend(model_of(shape, weights), precision=precision)
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
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    "name", ["head1.weight", "layers.0.residual.weight", "embedding.weight", "head2.bias"]
)
def test_non_finite_weights_are_found(instruction_set, precision, name, value):
    shape, weights, _ = random_model(36, stacks=1, layers_per_stack=2, classes=19)
    weights[name][...] = value
    backend = NativeBackend(model_of(shape, weights), precision=precision)
    with pytest.raises(BackendError, match="non-finite logits"):
        backend.generate(random_state(shape, 1, 0), torch.full((1, 20), 0.5), Sampling())


@needs_extension
def test_a_network_of_zeros_and_one_of_extremes(instruction_set):
    """Scales of 0, and weights at the ends of float32's range, are no division by zero."""
    shape, weights, _ = random_model(37, stacks=1, layers_per_stack=2, classes=16)
    for scale in (0.0, 1e-38, 1e-42):
        model = model_of(shape, {name: value * np.float32(scale) for name, value in weights.items()})
        for precision in PRECISIONS:
            state = random_state(shape, 2, 0)
            given = torch.zeros(2, 30, dtype=torch.int64)
            logits = NativeBackend(model, precision=precision).advance(state, given)
            assert float(logits.abs().max()) <= 1e-30


@needs_extension
def test_a_state_goes_from_precision_to_precision():
    _, _, model = random_model(5)
    engines = [Generator(model, "cpu", threads=1, precision=precision) for precision in PRECISIONS]
    state = engines[0].start(2, seed=3)
    for engine in engines:
        engine.generate(40, state)
        assert state.queues.dtype == torch.float32
    assert state.position.tolist() == [120, 120]
    # A primed stream does not depend on the precision that it will go on in.
    primer = torch.zeros(50, dtype=torch.int64)
    assert all(torch.equal(each.prime(primer).queues, engines[0].prime(primer).queues) for each in engines)


@needs_extension
def test_int8_refuses_sums_that_could_overflow_when_it_is_asked_for():
    _, _, model = random_model(
        5, residual=32769, dilation=1, skip=1, head=1, classes=2, kernel_size=2, stacks=1, layers_per_stack=1
    )
    told = r"^kernel_size \* residual_channels = 65538: int8 supports at most 65536; use bf16 or fp32$"
    with pytest.raises(BackendError, match=told):
        Generator(model, precision="int8")
    assert Generator(model, precision="bf16").backend.precision == "bf16"


def test_what_cannot_be_served_is_told(monkeypatch):
    _, _, model = random_model(5)
    with pytest.raises(BackendError, match="unknown precision 'fp8': choose from fp32, bf16, int8"):
        Generator(model, precision="fp8")
    with pytest.raises(
        BackendError, match="'reference' cannot run here: it computes in fp32 only, not in int8"
    ):
        Generator(model, "reference", precision="int8")
    monkeypatch.setattr(NativeBackend, "available", staticmethod(lambda: "the extension was not built: why"))
    told = "no backend can generate in bf16 here: cpu: .* not built: why; numba: it computes in fp32 only"
    with pytest.raises(BackendError, match=told):
        Generator(model, precision="bf16")
    assert Generator(model).backend.name in registry.NAMES[1:]
