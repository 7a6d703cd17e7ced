"""Generation on every backend: against the parallel form, a float64 convolution, and itself continued."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import naive
from support.engines import chain_model, model_of, random_model

from wavenet.config import WaveNetConfig
from wavenet.engine import registry
from wavenet.engine.sampling import Sampling, uniforms
from wavenet.errors import BackendError, CheckpointError, ConfigError
from wavenet.generation.generator import Generator, GeneratorState
from wavenet.models.gate_bias import GateBias
from wavenet.models.serialization import serialized

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=[name for name in registry.NAMES if name != "cuda"])
def backend(request):
    reason = registry.report()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@functools.lru_cache(maxsize=32)
def generator(backend: str, seed: int, threads: int = 1) -> Generator:
    return Generator(random_model(seed)[2], backend, threads=threads)


def all_samples(classes: int, batch: int, steps: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, classes, (batch, steps)))


def gate_bias(generator: Generator, batch: int, frames: int, **settings) -> GateBias:
    config = generator.config
    torch.manual_seed(frames)
    return GateBias(torch.randn(batch, frames, config.layers, 2 * config.dilation_channels), **settings)


# -- step by step = parallel --------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    primed=st.sampled_from(["none", "one", "less", "field", "more"]),
    data=st.data(),
)
def test_step_by_step_equals_the_parallel_form(backend, seed, primed, data):
    """Over random networks, in chunks of 1, 7, RF - 1, RF, RF + 1, past twice the largest ring."""
    shape, _, model = random_model(seed, stacks=1 + seed % 2, layers_per_stack=1 + seed % 4)
    engine = Generator(model, backend, threads=1)
    field = engine.config.receptive_field
    start = {"none": 0, "one": 1, "less": field - 1, "field": field, "more": 2 * field + 3}[primed]
    steps = 2 * (shape.kernel_size - 1) * max(shape.dilations) + 9
    samples = all_samples(shape.classes, 2, start + steps, seed)
    chunk = data.draw(st.sampled_from([1, 7, max(1, field - 1), field, field + 1]))
    state = engine.prime(samples[:, :start])
    found = torch.cat([engine.advance(state, part) for part in samples[:, start:].split(chunk, dim=1)], dim=2)
    silence = torch.full((2, field), engine.config.silence)
    expected = model(torch.cat([silence, samples], 1)[:, :-1])[:, :, start:]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert state.position.tolist() == [start + steps] * 2
    assert torch.equal(state.last_sample, samples[:, -1])


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("primed", [0, 5, 200])
def test_logits_with_gate_bias_match_float64(backend, linear, primed):
    shape, weights, model = random_model(7, classes=17, stacks=2, layers_per_stack=3, kernel_size=3)
    engine = Generator(model, backend, threads=1)
    bias = gate_bias(engine, 2, 11, hop=13, start=-4, linear=linear)
    samples = all_samples(17, 2, primed + 130, 1)
    state = engine.prime(samples[:, :primed], gate_bias=bias)
    found = engine.advance(state, samples[:, primed:], bias)
    field = shape.context + 1
    for row in range(2):
        fed = np.concatenate([np.full(field, engine.config.silence), samples[row].numpy()[:-1]])
        rows = naive.gate_rows(bias.values[row].numpy(), 13, -4, linear, range(1 - field, samples.shape[1]))
        exact = naive.logits(shape, weights, fed, rows)[primed:].T
        assert np.abs(found[row].numpy() - exact).max() <= 1e-5 * np.abs(exact).max()


def test_samples_match_draws_in_float64(backend):
    shape, weights, _ = random_model(3, classes=32, stacks=2, layers_per_stack=4)
    engine = generator_for(shape, weights, backend)
    state = engine.start(batch=2, seed=11)
    draws = uniforms(state, 400).numpy()
    samples = engine.generate(400, state.with_sampling(Sampling(0.9, 20, 0.95))).numpy()
    field = shape.context + 1
    for row in range(2):
        fed = np.concatenate([np.full(field, 16), samples[row][:-1]])
        exact = naive.logits(shape, weights, fed)
        expected = [naive.draw(exact[t], draws[row, t], 0.9, 20, 0.95) for t in range(400)]
        assert samples[row].tolist() == expected


def generator_for(shape, weights, backend) -> Generator:
    return Generator(model_of(shape, weights), backend, threads=1)


# -- a stream depends on its seed and its number only -------------------------------------------------


def test_one_call_equals_many(backend):
    engine = generator(backend, 5)
    whole = engine.generate(90, engine.start(2, seed=4))
    state = engine.start(2, seed=4)
    parts = [engine.generate(steps, state) for steps in (20, 0, 1, 69)]
    assert torch.equal(torch.cat(parts, 1), whole)
    for chunk in (1, 13, 1000):
        streamed = torch.cat(list(engine.stream(engine.start(2, seed=4), 90, chunk)), 1)
        assert torch.equal(streamed, whole)


def test_batch_position_and_threads_change_nothing(backend):
    engine = generator(backend, 5)
    primer = all_samples(engine.config.quantization_channels, 1, 50, 0)
    alone = engine.generate(60, engine.prime(primer, seed=9, first_stream=3))
    five = engine.generate(60, engine.prime(primer, seed=9).fan_out(5))
    other = generator(backend, 5, threads=3)
    spread = other.generate(60, other.prime(primer.expand(5, -1), seed=9))
    assert torch.equal(five[3:4], alone)
    assert torch.equal(spread, five)
    assert len({tuple(row.tolist()) for row in five}) == 5
    assert not torch.equal(engine.generate(60, engine.prime(primer, seed=10, first_stream=3)), alone)


def test_priming_in_parallel_equals_advancing(backend):
    engine = generator(backend, 6)
    samples = all_samples(engine.config.quantization_channels, 1, 3 * engine.config.receptive_field, 2)
    primed = engine.prime(samples)
    advanced = engine.start()
    engine.advance(advanced, samples)
    assert torch.allclose(primed.queues, advanced.queues, rtol=1e-5, atol=1e-5)
    assert torch.equal(primed.position, advanced.position)
    assert torch.equal(primed.last_sample, advanced.last_sample)


def test_a_state_continues_on_another_backend():
    names = [name for name, reason in registry.report().items() if reason is None]
    primer = all_samples(random_model(5)[0].classes, 1, 70, 3)
    results = []
    for first in names:
        for second in names:
            state = generator(first, 5).prime(primer, seed=1, sampling=Sampling(0.8))
            head = generator(first, 5).generate(40, state)
            results.append(torch.cat([head, generator(second, 5).generate(40, state)], 1))
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_model_given_is_left_alone():
    model = random_model(5)[2].double().train().requires_grad_(True)
    engine = Generator(model, "reference")
    assert model.training and next(model.parameters()).dtype == torch.float64
    before = engine.generate(20)
    torch.nn.init.zeros_(model.head2.weight)
    assert torch.equal(engine.generate(20), before)


def test_encode_and_decode_are_mu_law_of_the_network(backend):
    engine = generator(backend, 5)
    classes = torch.arange(engine.config.quantization_channels).reshape(1, -1)
    assert torch.equal(engine.encode(engine.decode(classes)), classes)
    assert engine.encode(np.array([-1.0, 1.0])).tolist() == [0, classes.numel() - 1]


def test_cloned_selected_and_saved_states(tmp_path):
    engine = generator("reference", 5)
    state = engine.start(3, seed=8)
    engine.generate(10, state)
    copy = state.clone()
    state.save(tmp_path / "state")
    expected = engine.generate(20, state)
    assert torch.equal(engine.generate(20, copy.clone()), expected)
    assert torch.equal(engine.generate(20, GeneratorState.load(tmp_path / "state")), expected)
    assert torch.equal(engine.generate(20, copy.select([2, 0])), expected[[2, 0]])
    with pytest.raises(ConfigError, match="single stream"):
        copy.fan_out(2)
    copy.substream += 1
    assert not torch.equal(engine.generate(20, copy.clone()), expected)
    copy.save(tmp_path / "state")
    loaded = GeneratorState.load(tmp_path / "state")
    assert loaded.substream.tolist() == [1, 1, 1]
    assert torch.equal(engine.generate(20, loaded), engine.generate(20, copy.clone()))
    tensors = {name: getattr(copy, name) for name in ("queues", "position", "last_sample", "stream")}
    (tmp_path / "state").write_bytes(serialized(tensors))
    with pytest.raises(CheckpointError, match="is not a generator's saved state"):
        GeneratorState.load(tmp_path / "state")
    (tmp_path / "state").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="state"):
        GeneratorState.load(tmp_path / "state")


def clicks_and_sounds() -> list[list[float]]:
    """Silence (class 4 of 8), clicks of one sample (class 0), sounds that swing between classes 1 and 7."""
    never = -60.0
    click = [never] * 4 + [0.0] + [never] * 3
    silence, low, high = list(click), list(click), list(click)
    silence[0], silence[1] = -7.5, -8.5
    low[4], low[7], high[4], high[1] = -7.0, 0.0, -7.0, 0.0
    return [click, low, click, click, silence, click, click, high]


def is_sound(wave: np.ndarray, start: int) -> bool:
    """As `skip_silence` defines it: eight pieces of 1/32 s, the first loud and at least four in all."""
    pieces = wave[start : start + 4000].reshape(8, 500)
    loud = pieces.std(axis=1) > 10 ** (-45 / 20)
    return bool(loud[0] and loud.sum() >= 4)


def test_silence_is_skipped_up_to_the_first_sound(backend):
    """Clicks are passed over; what comes after skipping is what would have come."""
    steps = 7000
    engine = Generator(chain_model(clicks_and_sounds()), backend, threads=1)
    whole = engine.generate(steps, engine.start(3, seed=42))
    waves = engine.decode(whole).double().numpy()
    state = engine.start(3, seed=42)
    began = engine.skip_silence(state, steps)
    assert state.position.tolist() == [0, 0, 0]
    expected = []
    for wave in waves:
        starts = [start for start in range(0, steps - 4000 + 1, 500) if is_sound(wave, start)]
        expected.append(starts[0] if starts else 0)
    assert began.position.tolist() == expected
    # The first stream clicks before its sound, the second does nothing else, the third sounds at once.
    assert np.abs(waves[0, :500]).max() > 0.5 and expected[0] > 500
    assert np.abs(waves[1]).max() > 0.5 and not any(is_sound(waves[1], at) for at in range(0, 3001, 500))
    assert is_sound(waves[2], 0)
    sound = engine.generate(600, began)
    for row, start in enumerate(expected):
        assert torch.equal(sound[row], whole[row, start : start + 600])


# -- randomness and drawing ---------------------------------------------------------------------------


def state_at(position: int, stream: int, seed: int) -> GeneratorState:
    one = torch.zeros(1, dtype=torch.int64)
    return GeneratorState(torch.zeros(1, 1, 1), one + position, one, one + stream, one + seed)


@given(st.integers(0, 10**9), st.integers(1, 50), st.integers(0, 2**62), st.integers(0, 2**40))
def test_uniforms_are_a_window_on_one_sequence(position, steps, seed, stream):
    window = uniforms(state_at(position, stream, seed), steps)[0]
    for offset in {0, steps // 2, steps - 1}:
        assert window[offset] == uniforms(state_at(position + offset, stream, seed), 1)[0, 0]
    assert window.dtype == torch.float32 and bool(((window >= 0) & (window < 1)).all())


def test_uniforms_are_uniform_and_streams_differ():
    from scipy import stats

    values = uniforms(state_at(0, 0, 1), 100_000)[0].numpy()
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    other = uniforms(state_at(0, 1, 1), 100_000)[0].numpy()
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.02
    # numpy's own generator, stepped one word at a time.
    words = np.random.Philox(key=np.array([1, 0], dtype=np.uint64)).random_raw(5)
    assert values[:5].tolist() == [(int(word) >> 40) / 2**24 for word in words]


def test_substreams_are_different_sequences():
    state = state_at(7, 3, 1)
    plain = uniforms(state, 100)
    assert torch.equal(
        uniforms(dataclasses.replace(state, substream=torch.zeros(1, dtype=torch.int64)), 100), plain
    )
    again = [uniforms(dataclasses.replace(state, substream=torch.tensor([number])), 100) for number in (1, 2)]
    assert len({tuple(each[0].tolist()) for each in (plain, *again)}) == 3
    # As an integer, numpy counts on over the words: 2^64 is 1 in the second.
    jumped = np.random.Philox(key=np.array([1, 3], dtype=np.uint64), counter=2**64).random_raw(107)[7:]
    assert again[0][0].tolist() == [(int(word) >> 40) / 2**24 for word in jumped]


def constant_generator(backend: str, logits: list[float]) -> Generator:
    """A network that predicts the same distribution after every sample."""
    config = WaveNetConfig(
        quantization_channels=len(logits), layers=1, stacks=1, residual_channels=1, dilation_channels=1,
        skip_channels=1, head_channels=1,
    )  # fmt: skip
    from wavenet.models.wavenet import WaveNet

    model = WaveNet(config)
    model.head2.weight.data.zero_()
    model.head2.bias.data.copy_(torch.tensor(logits))
    return Generator(model, backend, threads=1)


def test_drawn_frequencies_fit_the_softmax(backend):
    from scipy import stats

    logits = [0.3, -1.0, 2.0, 0.0, 1.1, -2.5]
    # The reference backend takes milliseconds a step.
    steps = 100_000 if backend != "reference" else 5_000
    counts = torch.bincount(constant_generator(backend, logits).generate(steps)[0], minlength=6).numpy()
    expected = np.exp(logits) / np.exp(logits).sum() * steps
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    "values",
    [dict(temperature=-1), dict(temperature=float("nan")), dict(temperature=float("inf")),
     dict(top_k=-1), dict(top_k=2**31), dict(top_p=0), dict(top_p=1.1), dict(top_p=float("nan"))],
)  # fmt: skip
def test_sampling_out_of_range(values):
    with pytest.raises(ConfigError):
        Sampling(**values)


# -- misuse -------------------------------------------------------------------------------------------


def test_non_finite_logits_are_an_error(backend):
    engine = constant_generator(backend, [0.0, float("nan"), 0.0])
    state = engine.prime(torch.zeros(5, dtype=torch.int64), first_stream=6)
    with pytest.raises(BackendError, match="non-finite logits at sample 5 of stream 6"):
        engine.generate(3, state)


def test_misuse_is_an_error():
    engine = generator("reference", 5)
    classes = engine.config.quantization_channels
    with pytest.raises(ConfigError, match=f"0 to {classes - 1}"):
        engine.prime(torch.tensor([0, classes]))
    with pytest.raises(ConfigError, match="0 to"):
        engine.advance(engine.start(), torch.tensor([[-1]]))
    with pytest.raises(ConfigError, match=r"float32: expected classes; `encode`"):
        engine.prime(torch.tensor([0.5, -0.3]))
    with pytest.raises(ConfigError, match=r"\(1, 1, 3\): expected"):
        engine.prime(torch.zeros(1, 1, 3, dtype=torch.int64))
    for name, value, message in (
        ("position", torch.zeros(3, dtype=torch.int64), "position is"),
        ("position", torch.tensor([-1]), "out of range"),
        ("last_sample", torch.tensor([9999]), "last sample is 9999"),
        ("queues", torch.zeros(1, 1, 1, dtype=torch.float64), "float64"),
    ):
        state = engine.start()
        setattr(state, name, value)
        with pytest.raises(ConfigError, match=message):
            engine.generate(3, state)
    with pytest.raises(ConfigError, match="batch = 10000000000000"):
        engine.start(batch=10**13)
    with pytest.raises(ConfigError, match="batch 2"):
        engine.advance(engine.start(), torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ConfigError, match="seed"):
        engine.start(seed=-1)
    with pytest.raises(ConfigError, match="batch = 0"):
        engine.start(batch=0)
    with pytest.raises(ConfigError, match="another network"):
        generator("reference", 6).generate(3, engine.start())
    with pytest.raises(ConfigError, match="gate bias"):
        engine.generate(3, gate_bias=GateBias(torch.zeros(1, 1, 1, 2), hop=1))
    with pytest.raises(ConfigError, match="chunk = 0"):
        engine.stream(engine.start(), 5, chunk=0)
    with pytest.raises(BackendError, match="choose from"):
        Generator(random_model(5)[2], "gpu")
    with pytest.raises(BackendError, match="threads = 99999999999"):
        Generator(random_model(5)[2], threads=99999999999)
    with pytest.raises(BackendError, match="threads = 0"):
        Generator(random_model(5)[2], threads=0)
    with pytest.raises(BackendError, match="device"):
        Generator(random_model(5)[2], device="meta")


# -- drift --------------------------------------------------------------------------------------------


def test_golden_network(backend):
    """Weights, logits and samples written once (tests/golden/README.md): a change of meaning shows here."""
    engine = Generator.from_pretrained(GOLDEN, backend, threads=1)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    logits = engine.advance(engine.start(), torch.tensor([expected["inputs"]]))[0, :, -1]
    assert logits.tolist() == pytest.approx(expected["last_logits"], abs=1e-5)
    state = engine.prime(torch.tensor(expected["inputs"]), seed=123, first_stream=4)
    samples = engine.generate(len(expected["samples"]), state.with_sampling(Sampling(0.9, 12, 0.97)))
    assert samples[0].tolist() == expected["samples"]
