"""Bits per sample against float64 sums, closed forms and scipy; linear prediction against known entropy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from support.datasets import pcm_of, prepare_dataset
from support.naive import Shape, logits, random_weights

from wavenet.audio import mulaw
from wavenet.config import WaveNetConfig
from wavenet.data.clips import Clip, Clips
from wavenet.data.dataset import DataConfig
from wavenet.engine import registry
from wavenet.errors import BackendError
from wavenet.evaluation import scoring
from wavenet.evaluation.linear_prediction import ORDER, LinearPrediction, class_edges, laplace_nats
from wavenet.evaluation.results import Evaluation, Sums
from wavenet.evaluation.scoring import Loop, Parallel, bits_per_sample, evaluate, rows_per_pass
from wavenet.generation.generator import Generator
from wavenet.models.wavenet import WaveNet
from wavenet.utils.statistics import ratio_interval

CLASSES = 24
SHAPE = Shape(
    classes=CLASSES, residual=6, dilation=5, skip=9, head=8, kernel_size=2, stacks=2, layers_per_stack=3
)
CONFIG = WaveNetConfig(
    quantization_channels=CLASSES, layers=6, stacks=2, kernel_size=2, residual_channels=6,
    dilation_channels=5, skip_channels=9, head_channels=8,
)  # fmt: skip
LENGTHS = {"a": [70, 3], "b/c": [1], "d": [110]}


@pytest.fixture(scope="module")
def arrays():
    """Each recording's clips."""
    rng = np.random.default_rng(3)
    return {
        name: [rng.integers(0, CLASSES, length) for length in lengths] for name, lengths in LENGTHS.items()
    }


@pytest.fixture(scope="module")
def clips(arrays, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("clips"), []
    for number, (name, parts) in enumerate(arrays.items()):
        path, offset = folder / f"{number}.bin", 0
        path.write_bytes(pcm_of(np.concatenate(parts), CLASSES))
        for part in parts:
            made.append(Clip(path, offset, len(part), name))
            offset += 2 * len(part)
    return Clips(made, CONFIG.receptive_field, CLASSES)


@pytest.fixture(scope="module")
def weights():
    return random_weights(SHAPE, np.random.default_rng(5))


@pytest.fixture(scope="module")
def model(weights):
    made = WaveNet(CONFIG)
    made.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return made.eval()


@pytest.fixture(scope="module")
def truth(arrays, weights):
    """Bits of each recording, in float64: every clip after endless silence."""
    found = {}
    for name, parts in arrays.items():
        found[name] = 0.0
        for part in parts:
            fed = np.concatenate([np.full(SHAPE.context + 1, CLASSES // 2), part])[:-1]
            rows = logits(SHAPE, weights, fed)
            chosen = rows[np.arange(len(part)), part]
            found[name] += float((np.log2(np.exp(rows).sum(axis=1)) - chosen / math.log(2)).sum())
    return found


# -- a network's bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("segment", [1, 7, 50, 1000])
def test_every_sample_counts_once_for_any_window(segment, clips, model, arrays, truth):
    found = evaluate(clips, {"network": Parallel(model, rows=3)}, segment)
    assert dict(zip(found.names, found.samples.tolist(), strict=True)) == {"a": 73, "b/c": 1, "d": 110}
    assert found.window_samples.sum() == found.total == clips.samples == 184
    everything = np.concatenate([part for parts in arrays.values() for part in parts])
    assert found.histogram.tolist() == np.bincount(everything, minlength=CLASSES).tolist()
    by_recording = dict(zip(found.names, found.sums["network"].recordings, strict=True))
    assert by_recording == pytest.approx(truth, rel=1e-5)
    assert found.bits("network") == pytest.approx(sum(truth.values()) / 184, rel=1e-5)
    assert found.sums["network"].windows.sum() == pytest.approx(sum(truth.values()), rel=1e-5)


def test_training_scores_with_the_same_numbers(clips, model, truth):
    assert bits_per_sample(model, clips.windows(40)) == pytest.approx(sum(truth.values()) / 184, rel=1e-5)
    # As many windows at once, whose number some processors' products round by.
    bits = bits_per_sample(model, clips.windows(40, batch=scoring.BATCH))
    assert bits == pytest.approx(evaluate(clips, {"n": Parallel(model)}, 40).bits("n"), rel=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("most_logits", [scoring._LOOP_LOGITS, 16 * CLASSES * 5])
def test_the_sample_loop_agrees(backend, most_logits, clips, model, truth, monkeypatch):
    if registry.report()[backend] is not None:
        pytest.skip("not available here")
    monkeypatch.setattr(scoring, "_LOOP_LOGITS", most_logits)
    found = evaluate(clips, {"loop": Loop(Generator(model, backend))}, 13)
    by_recording = dict(zip(found.names, found.sums["loop"].recordings, strict=True))
    assert by_recording == pytest.approx(truth, rel=1e-5)


@pytest.mark.skipif(registry.report()["cpu"] is not None, reason="the reference computes in fp32 only")
def test_precisions_are_compared_on_the_same_samples(clips, model):
    scorers = {each: Loop(Generator(model, "cpu", precision=each)) for each in ("fp32", "bf16", "int8")}
    found = evaluate(clips, scorers, 13)
    for name, most in (("bf16", 0.02), ("int8", 0.2)):
        difference = found.difference(name, "fp32")
        assert 0 < abs(difference.bits) < most
        assert difference.bits == pytest.approx(found.bits(name) - found.bits("fp32"))


def test_an_uninformed_network_scores_as_uniform(clips):
    model = WaveNet(CONFIG)
    for parameter in (model.head2.weight, model.head2.bias):
        torch.nn.init.zeros_(parameter)
    found = evaluate(clips, {"network": Parallel(model)}, 20)
    assert found.uniform_bits == math.log2(CLASSES)
    assert found.bits("network") == pytest.approx(math.log2(CLASSES), abs=1e-6)
    assert found.interval("network") == pytest.approx([math.log2(CLASSES)] * 2, abs=1e-6)


def test_unigram_is_the_entropy_of_what_was_scored(clips, arrays):
    found = evaluate(clips, {}, 20)
    share = np.bincount(np.concatenate([part for parts in arrays.values() for part in parts])) / 184
    assert found.unigram_bits == pytest.approx(-(share[share > 0] * np.log2(share[share > 0])).sum())


def test_a_limit_is_spread_over_the_recordings(clips, model):
    found = evaluate(clips, {"network": Parallel(model)}, 10, max_samples=60)
    assert 30 <= found.total <= 60 and found.samples[0] > 0 and found.samples[2] > 0
    assert found.histogram.sum() == found.total
    # A limit below one window shortens it.
    assert 1 <= evaluate(clips, {"network": Parallel(model)}, 100, max_samples=4).total <= 4


def test_progress_and_probabilities_that_are_nan(clips, model):
    seen = []
    evaluate(clips, {}, 10, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    broken = WaveNet(CONFIG)
    torch.nn.init.constant_(broken.head2.bias, math.nan)
    with pytest.raises(BackendError, match="network's probabilities in a are not finite"):
        evaluate(clips, {"network": Parallel(broken)}, 20)


def test_larger_networks_take_fewer_windows_at_once():
    wide = dataclasses.replace(CONFIG, dilation_channels=4096)
    assert rows_per_pass(CONFIG, 1000) == scoring.BATCH and rows_per_pass(wide, 16000) == 1


# -- recordings and their names -----------------------------------------------------------------------


def test_prepared_clips_know_their_recordings(tmp_path):
    from support.datasets import CONFIG as AUDIO
    from support.datasets import contents, folder_of, real_samples

    folder_of(tmp_path / "audio", count=12)
    settings = DataConfig(silence_db=None, validation_fraction=0.4)
    prepared = prepare_dataset(tmp_path / "audio", tmp_path / "cache", AUDIO, settings)
    assert prepared.report.split == "files"
    names = {f"n{index:02}.wav" for index in range(12)}
    assert set(prepared.train.names) | set(prepared.validation.names) == names == set(prepared.whole.names)
    assert not set(prepared.train.names) & set(prepared.validation.names)
    assert len(real_samples(prepared.whole)) == sum(map(len, contents(prepared)))
    # One file is divided into parts, but whole it is one stretch.
    single = prepare_dataset(tmp_path / "audio" / "n00.wav", tmp_path / "cache", AUDIO, settings)
    assert single.report.split == "ends" and len(single.whole) == 1
    before, after = contents(single)
    assert real_samples(single.whole).tolist() == before + after


# -- intervals ----------------------------------------------------------------------------------------


def test_interval_of_equal_recordings_is_students():
    values = np.random.default_rng(0).normal(4, 0.5, 9)
    found = ratio_interval(100 * values, np.full(9, 100))
    expected = scipy.stats.t.interval(0.95, 8, values.mean(), scipy.stats.sem(values))
    assert found == pytest.approx(expected, rel=1e-9)
    # A recording of which nothing was scored is not there.
    assert ratio_interval(np.append(100 * values, 0), np.append(np.full(9, 100), 0)) == found
    assert ratio_interval(np.array([5.0, 0.0]), np.array([2, 0])) is None


def test_the_interval_has_its_coverage():
    """Recordings of unequal length, the longer ones harder: the ratio of expectations is known."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(50, 150, (3000, 12))
    bits = (3 + lengths / 100 + rng.normal(0, 0.4, lengths.shape)) * lengths
    # E[L (3 + L / 100)] / E[L], over whole numbers from 50 to 149.
    possible = np.arange(50, 150)
    true = (possible * (3 + possible / 100)).mean() / possible.mean()
    covered = [
        low <= true <= high
        for low, high in (ratio_interval(*each) for each in zip(bits, lengths, strict=True))
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def evaluation_of(samples, one, two, windows):
    sums = {"one": Sums(*map(np.array, one)), "two": Sums(*map(np.array, two))}
    names = [f"r{index}" for index in range(len(samples))]
    return Evaluation(names, np.array(samples), np.array(windows), np.ones(4, dtype=np.int64), sums)


def test_differences_are_paired():
    """Recordings differ widely, but the second score is always half a bit above the first."""
    found = evaluation_of([10, 20], ([10.0, 80.0], [90.0]), ([15.0, 90.0], [105.0]), [30])
    difference = found.difference("two", "one")
    assert difference.bits == pytest.approx(0.5) and difference.units == "recordings"
    assert difference.interval == pytest.approx((0.5, 0.5))
    low, high = found.interval("one")
    assert high - low > 5
    alone = evaluation_of([30, 0], ([90.0, 0], [40.0, 50.0]), ([93.0, 0], [42.0, 51.0]), [15, 15])
    difference = alone.difference("two", "one")
    assert alone.interval("one") is None and difference.units == "windows"
    half = scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem([2 / 15, 1 / 15])
    assert difference.interval == pytest.approx((0.1 - half, 0.1 + half))


# -- linear prediction --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 16, 256])
def test_class_edges_are_where_encoding_changes(classes):
    edges = class_edges(classes)
    assert len(edges) == classes + 1 and edges[0] == -math.inf and edges[-1] == math.inf
    for index, edge in enumerate(edges[1:-1]):
        around = mulaw.encode(np.array([edge - 1e-9, edge + 1e-9]), classes)
        assert around.tolist() == [index, index + 1]


def test_laplace_probability_of_intervals():
    rng = np.random.default_rng(2)
    low = rng.normal(0, 3, 200)
    high = low + rng.exponential(1, 200)
    low[:2], high[2:4] = -np.inf, np.inf
    law = scipy.stats.laplace(scale=0.7)
    expected = np.where(low > 0, law.sf(low) - law.sf(high), law.cdf(high) - law.cdf(low))
    assert laplace_nats(low, high, 0.7) == pytest.approx(-np.log(expected), rel=1e-9)
    # Far out, where the probability itself is no float64: the density is exp(-x / scale) / (2 scale).
    far = laplace_nats(np.array([2000.0, -2001.0]), np.array([2001.0, -2000.0]), 1.0)
    assert far == pytest.approx([2000 + math.log(2) - math.log(1 - math.exp(-1))] * 2, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 16, 256])
@pytest.mark.parametrize("predicted", [0.0, -0.013, 0.97, 1.8])
def test_class_probabilities_sum_to_one(classes, predicted):
    edges = class_edges(classes) - predicted
    for scale in (1e-4, 0.02, 3.0):
        chances = np.exp(-laplace_nats(edges[:-1], edges[1:], scale))
        assert (chances >= 0).all() and chances.sum() == pytest.approx(1, rel=1e-9)


def windows_of(samples, context, segment, silence):
    """One row per segment, with its context, as `Clips` gives them."""
    padded = np.concatenate([np.full(context, silence), samples])
    starts = range(0, len(samples), segment)
    rows = np.stack([padded[start : start + context + segment] for start in starts])
    return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, context:].copy())


def test_linear_prediction_reaches_the_entropy():
    """With Laplace innovations of scale b a sample has log2(2 e b) bits, less the log2 width of its class."""
    count, scale, classes = 40_000, 0.004, 65536
    drawn = np.random.default_rng(4).laplace(0, scale, count)
    signal = scipy.signal.lfilter([1], [1, -1.8, 0.9], drawn)
    assert np.abs(signal).max() < 1
    samples = mulaw.encode(signal, classes)
    inputs, targets = windows_of(samples, 100, 20_000, classes // 2)
    bits = LinearPrediction(classes).nats(inputs, targets).mean() / math.log(2)
    mu = classes - 1
    companded = 2 * samples / mu - 1
    width = (1 + mu) ** np.abs(companded) * math.log(1 + mu) * 2 / mu**2
    entropy = math.log2(2 * math.e * scale) - np.log2(width).mean()
    charge = (ORDER + 1) / 2 * math.log2(20_000) / 20_000
    # The innovations drawn are a sample of their law: the mean of |e| / b has a standard error of 0.5 %.
    assert bits - charge == pytest.approx(entropy, abs=0.02)
    unpredicted = math.log2(2 * math.e * np.abs(signal).mean()) - np.log2(width).mean()
    assert bits < unpredicted - 1


def test_linear_prediction_with_short_context(clips):
    found = evaluate(clips, {"linear": LinearPrediction(CLASSES)}, 30)
    assert found.total == 184 and 0 < found.bits("linear") < 10
    inputs, targets, _ = next(iter(clips.windows(500)))
    costs = LinearPrediction(CLASSES).nats(inputs, targets)
    assert ((costs == 0) == (targets.numpy() < 0)).all()


def test_linear_prediction_of_constant_sound():
    samples = np.full(4000, 200)
    costs = LinearPrediction(256).nats(*windows_of(samples, 64, 4000, 200))
    assert costs.mean() / math.log(2) == pytest.approx((ORDER + 1) / 2 * math.log2(4000) / 4000, abs=0.01)
