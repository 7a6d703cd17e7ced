"""Every engine: logits as in float64, streams that do not depend on each other, and errors."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch
from support import naive
from support.engines import (
    ALL_PRECISIONS,
    COMPILED,
    CUDA,
    FP32,
    FP32_AND_CUDA,
    Engine,
    empty_state,
    model_of,
    on,
    random_gate,
    random_model,
    random_samples,
    random_state,
    random_uniforms,
    relative_errors,
    same,
    select_gate,
    zero_weights,
)

from wavenet.engine.sampling import Sampling
from wavenet.errors import BackendError
from wavenet.models.gate_bias import GateBias

# -- logits -------------------------------------------------------------------------------------------


@on(FP32_AND_CUDA)
@pytest.mark.parametrize("classes", ["few", "many"])
@pytest.mark.parametrize("seed", range(12))
def test_logits_match_float64(engine, seed, classes):
    changes = {"classes": [2, 33, 256, 1024][seed % 4]} if classes == "many" else {}
    shape, weights, model = random_model(seed, **changes)
    field = shape.context + 1
    # Past twice the largest ring.
    steps = shape.context + (90 if engine.slow else 300)
    samples = random_samples(shape, 1, steps + 1, seed)
    exact = naive.logits(shape, weights, samples[0, :-1].numpy())
    runner = engine.run(model)
    for chunk in (7,) if engine.slow else (1, 7, max(1, field - 1), field, field + 1, steps):
        state = empty_state(shape, last_sample=int(samples[0, 0]))
        parts = [runner.advance(state, part) for part in samples[:, 1:].split(chunk, dim=1)]
        found = torch.cat(parts, dim=1)[0, shape.context :]
        assert relative_errors(found, exact).max() <= 1e-5
        assert state.position.tolist() == [steps]
        assert state.last_sample.tolist() == [int(samples[0, -1])]


@on(ALL_PRECISIONS)
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("kernel_size", [2, 3])
@pytest.mark.parametrize(
    "widths",
    [(5, 7, 9, 11, 16), (64, 64, 256, 64, 256), (48, 24, 80, 100, 300), (17, 33, 130, 65, 129)],
)
def test_logits_are_right_for_every_block_width(engine, widths, kernel_size, batch):
    sizes = dict(zip(("residual", "dilation", "skip", "head", "classes"), widths, strict=True))
    shape, weights, model = random_model(3, **sizes, kernel_size=kernel_size, stacks=2, layers_per_stack=3)
    samples = random_samples(shape, 1, shape.context + 31, 4)
    exact = engine.logits(shape, weights, samples[0, :-1].numpy())
    state = empty_state(shape, batch, last_sample=int(samples[0, 0]))
    found = engine.run(model).advance(state, samples[:, 1:].expand(batch, -1))[-1, shape.context :]
    errors = relative_errors(found, exact)
    assert np.median(errors) <= 1e-5
    # Where float32 and float64 round a value to different integers, all that follows differs.
    assert errors.max() <= (0.02 if engine.precision == "int8" else 1e-5)


@on(FP32)
def test_silence_may_be_of_any_length(engine):
    shape, weights, model = random_model(21, kernel_size=3, stacks=2, layers_per_stack=3)
    silence, samples = model.config.silence, random_samples(shape, 1, 50, 5)
    inputs = np.concatenate([np.full(shape.context + 1, silence), samples[0].numpy()])
    exact = naive.logits(shape, weights, inputs)
    state = empty_state(shape, last_sample=silence)
    runner = engine.run(model)
    # Silence that fills the queues has the same effect as silence without beginning.
    for steps in (shape.context, 3):
        runner.advance(state, torch.full((1, steps), silence))
    found = runner.advance(state, samples)[0]
    assert relative_errors(found, exact[: samples.shape[1]]).max() <= 1e-5


@on(FP32_AND_CUDA)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("frames", "hop", "start"), [(1, 1, 0), (4, 7, 0), (5, 3, 11), (6, 16, -29)])
def test_gate_bias_matches_float64(engine, linear, frames, hop, start):
    shape, weights, model = random_model(8, kernel_size=3, stacks=2, layers_per_stack=2)
    samples = random_samples(shape, 1, shape.context + 61, 6)
    gate = random_gate(shape, 2, linear, frames, hop, start)
    state = empty_state(shape, batch=2, last_sample=int(samples[0, 0]))
    found = engine.run(model).advance(state, samples[:, 1:].expand(2, -1), gate)
    for row in range(2):
        inputs = samples[0, :-1].numpy()
        rows = naive.gate_rows(gate.values[row].numpy(), hop, start, linear, range(len(inputs)))
        exact = naive.logits(shape, weights, inputs, rows)
        assert relative_errors(found[row, shape.context :], exact).max() <= 1e-5


@on(FP32_AND_CUDA)
def test_streams_may_share_one_gate_bias(engine):
    shape, _, model = random_model(8, stacks=2, layers_per_stack=2)
    values = random_gate(shape, 1, frames=3).values
    runner, samples = engine.run(model), random_samples(shape, 3, 20, 1)
    expanded, copied = (
        runner.advance(random_state(shape, 3, 2), samples, GateBias(each, 5))
        for each in (values.expand(3, *values.shape[1:]), values.repeat(3, 1, 1, 1))
    )
    assert torch.equal(expanded, copied)


@on(COMPILED)
def test_gate_activation_over_its_whole_range(engine):
    """A network whose logits are the outputs of its gate: tanh(a) * sigmoid(b) of the biases."""
    a = np.concatenate([10.0 ** np.arange(-9, 3.1, 0.25), np.linspace(0, 20, 127)])
    a = np.concatenate([a, -a]).astype(np.float32)
    b = np.random.default_rng(0).permutation(np.linspace(-80, 100, len(a))).astype(np.float32)
    width = len(a)
    shape = naive.Shape(width, 1, width, 2 * width, 2 * width, 2, 1, 1)
    weights = zero_weights(shape)
    weights["layers.0.dilated.bias"] = np.concatenate([a, b])
    one = np.eye(width, dtype=np.float32)
    weights["skip.weight"] = np.concatenate([one, -one])
    weights["head1.weight"] = np.eye(2 * width, dtype=np.float32)
    weights["head2.weight"] = np.concatenate([one, -one], axis=1)
    runner = engine.run(model_of(shape, weights))
    found = runner.advance(empty_state(shape), torch.zeros(1, 1, dtype=torch.int64))
    exact = np.tanh(a.astype(np.float64)) / (1 + np.exp(-b.astype(np.float64)))
    np.testing.assert_allclose(found[0, 0].numpy(), exact, rtol=5e-7, atol=1e-25)


# -- independent streams ------------------------------------------------------------------------------


@on(ALL_PRECISIONS)
@pytest.mark.parametrize("conditioned", [False, True])
def test_samples_do_not_depend_on_threads_or_batch(engine, conditioned):
    shape, _, model = random_model(30, kernel_size=3, stacks=2, layers_per_stack=3)
    batch, steps = 5, 40 if engine.slow else 120
    gate = random_gate(shape, batch, linear=True, hop=37, start=100) if conditioned else None
    uniforms = random_uniforms(batch, steps)
    whole = random_state(shape, batch, 1)
    expected = engine.run(model).generate(whole, uniforms, gate=gate)
    if conditioned:
        assert not torch.equal(engine.run(model).generate(random_state(shape, batch, 1), uniforms), expected)
    for threads in (2,) if engine.slow else (1, 2, 5, 64):
        state = random_state(shape, batch, 1)
        assert torch.equal(engine.run(model, threads).generate(state, uniforms, gate=gate), expected)
        assert same(state, whole)
    order = [3, 0, 4]
    state = random_state(shape, batch, 1).select(order)
    runner, part = engine.run(model, 2), select_gate(gate, order)
    pieces = [runner.generate(state, piece, gate=part) for piece in uniforms[order].split(17, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), expected[order])
    assert torch.equal(state.queues, whole.queues[order])


@on(FP32_AND_CUDA)
def test_streams_have_their_own_settings(engine):
    """Temperature, top-k, top-p and the start of the gate bias of one stream do not affect the others."""
    shape, _, model = random_model(33, classes=24, kernel_size=2, stacks=2, layers_per_stack=3)
    settings = [Sampling(), Sampling(0.0), Sampling(1.5, 3), Sampling(0.8, 0, 0.5), Sampling(1.2, 10, 0.7)]
    batch, steps = len(settings), 60
    starts = torch.tensor([0, 500, -20, 900, 250])
    gate = dataclasses.replace(random_gate(shape, batch, linear=True, hop=37), start=starts)
    uniforms = random_uniforms(batch, steps)
    runner = engine.run(model, 2)
    state = random_state(shape, batch, 1).with_sampling(settings)
    together = runner.generate(state, uniforms, gate)
    for row, sampling in enumerate(settings):
        alone = random_state(shape, batch, 1).select([row]).with_sampling(sampling)
        bias = GateBias(gate.values[row : row + 1], gate.hop, int(starts[row]), gate.linear)
        drawn = runner.generate(alone, uniforms[row : row + 1], bias)
        assert torch.equal(drawn[0], together[row])
        assert torch.equal(alone.queues[0], state.queues[row])


@on(FP32_AND_CUDA)
def test_logits_do_not_depend_on_the_batch(engine):
    shape, _, model = random_model(31, stacks=2, layers_per_stack=3)
    samples = random_samples(shape, 7, 50, 2)
    together = engine.run(model, 3).advance(random_state(shape, 7, 4), samples)
    runner = engine.run(model)
    for row in range(7):
        state = random_state(shape, 7, 4).select([row])
        parts = [runner.advance(state, part) for part in samples[row : row + 1].split(9, dim=1)]
        assert torch.equal(torch.cat(parts, dim=1)[0], together[row])


@on(ALL_PRECISIONS)
@pytest.mark.parametrize("batch", [2, 3, 5, 12, 41])
def test_streams_do_not_depend_on_their_group(engine, batch):
    """The other streams of a register block, group or thread change nothing, nor do chunks."""
    shape, _, model = random_model(31, stacks=1, layers_per_stack=3, kernel_size=3, skip=70, dilation=33)
    gate = random_gate(shape, batch, linear=True, frames=3, hop=9, start=100)
    samples, uniforms = random_samples(shape, batch, 12, 2), random_uniforms(batch, 12, 1)

    def run(threads: int, chunk: int, rows: list[int]) -> list[torch.Tensor]:
        runner, bias = engine.run(model, threads), select_gate(gate, rows)
        state = random_state(shape, batch, 4).select(rows)
        logits = [runner.advance(state, part, bias) for part in samples[rows].split(chunk, 1)]
        drawn = [runner.generate(state, part, gate=bias) for part in uniforms[rows].split(chunk, 1)]
        return [torch.cat(logits, 1), torch.cat(drawn, 1), state.queues, state.position, state.last_sample]

    together = run(1, 12, list(range(batch)))
    for threads, chunk in ((1, 5), (2, 12), (3, 1)):
        assert all(map(torch.equal, run(threads, chunk, list(range(batch))), together))
    for row in {0, batch // 2, batch - 1}:
        alone = run(1, 7, [row])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))


@on(ALL_PRECISIONS)
@pytest.mark.parametrize("kernel_size", [2, 4])
def test_feeding_leaves_the_state_that_drawing_leaves(engine, kernel_size):
    """Over more steps than the largest ring and than a block of steps, with rings of one step among them."""
    shape, _, model = random_model(32, stacks=2, layers_per_stack=4, kernel_size=kernel_size, residual=7)
    gate = random_gate(shape, 3, linear=True, frames=5, hop=21, start=400)
    runner = engine.run(model, 2)
    drawing, feeding = random_state(shape, 3, 6), random_state(shape, 3, 6)
    drawn = runner.generate(drawing, random_uniforms(3, 100, 2), gate=gate)
    runner.advance(feeding, drawn, gate)
    assert same(feeding, drawing)


@on([*COMPILED, CUDA])
def test_a_state_continues_on_another_engine(engine):
    shape, _, model = random_model(32, classes=24, kernel_size=2, stacks=2, layers_per_stack=3)
    runners = [Engine("reference").run(model), engine.run(model)]
    gate = random_gate(shape, 2, linear=True, frames=3, hop=50, start=-20)
    pieces = random_uniforms(2, 120, 1).split(30, dim=1)
    found, queues = [], []
    for places in ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 1, 0)):
        state = random_state(shape, 2, 6).with_sampling(Sampling(0.9, 20, 0.97))
        drawn = [
            runners[place].generate(state, piece, gate) for place, piece in zip(places, pieces, strict=True)
        ]
        found.append(torch.cat(drawn, dim=1))
        queues.append(state.queues)
    assert all(torch.equal(each, found[0]) for each in found)
    assert all(torch.allclose(each, queues[0], rtol=1e-4, atol=1e-4) for each in queues)


@on(COMPILED)
def test_other_python_threads_keep_running(engine):
    shape, _, model = random_model(33, residual=64, dilation=64, skip=256, head=256, classes=256)
    runner = engine.run(model)
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            time.sleep(0.001)
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        most = 0
        for attempt in range(20):
            uniforms = torch.full((1, 1000 * (attempt + 1)), 0.5)
            state, before = random_state(shape, 1, attempt), ticks[0]
            runner.generate(state, uniforms)
            most = max(most, ticks[0] - before)
            if most >= 5:
                break
    finally:
        stop.set()
        thread.join()
    # An engine that held Python's lock would allow at most one tick, between the reading and the call.
    assert most >= 5


# -- errors -------------------------------------------------------------------------------------------


@on(FP32_AND_CUDA)
@pytest.mark.parametrize("threads", [1, 3])
def test_non_finite_logits_name_sample_and_stream(engine, threads):
    widths = dict(residual=4, dilation=5, stacks=1, layers_per_stack=2, kernel_size=2, classes=8)
    shape, weights, _ = random_model(35, **widths)
    weights["embedding.weight"][3] = np.nan
    runner = engine.run(model_of(shape, weights), threads)
    state = random_state(shape, 3, 5)
    state.position[:] = torch.tensor([7, 20, 31])
    state.last_sample[:] = 1
    samples = torch.ones(3, 10, dtype=torch.int64)
    # Row 1, stream 11: the sample at position 24 is fed to predict the one at 25.
    samples[1, 4] = 3
    message = r"^the network produced non-finite logits at sample 25 of stream 11$"
    with pytest.raises(BackendError, match=message):
        runner.advance(state, samples)


@on(FP32)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(
    "name", ["head2.bias", "skip.bias", "layers.0.dilated.bias", "layers.0.residual.weight"]
)
def test_one_non_finite_weight_is_found(engine, name, value):
    shape, weights, _ = random_model(36, stacks=1, layers_per_stack=2, classes=19)
    weights[name].flat[-1] = value
    runner = engine.run(model_of(shape, weights))
    uniforms = torch.full((1, 20), 0.5)
    # A saturated gate and a rectifier give finite values.
    saturated = name == "layers.0.dilated.bias" and not np.isnan(value)
    if saturated or (name == "skip.bias" and value == -np.inf):
        samples = runner.generate(random_state(shape, 1, 0), uniforms)
        assert 0 <= int(samples.min()) <= int(samples.max()) < shape.classes
    else:
        with pytest.raises(BackendError, match="non-finite logits"):
            runner.generate(random_state(shape, 1, 0), uniforms)


@on(ALL_PRECISIONS)
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    "name", ["head1.weight", "layers.0.residual.weight", "embedding.weight", "head2.bias"]
)
def test_non_finite_weights_are_found(engine, name, value):
    shape, weights, _ = random_model(36, stacks=1, layers_per_stack=2, classes=19)
    weights[name][...] = value
    runner = engine.run(model_of(shape, weights))
    with pytest.raises(BackendError, match="non-finite logits"):
        runner.generate(random_state(shape, 1, 0), torch.full((1, 20), 0.5))
