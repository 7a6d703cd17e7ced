"""Conditioning: every backend and the parallel form against formulas in numpy."""

import numpy as np
import pytest
import torch
from support import conditioned, naive
from support.conditioned import ENGINES, KINDS, RATE, config, engine, network, tune

from wavenet.conditioning import registry as kinds
from wavenet.conditioning.base import BLOCK, CombinedSource, Frames
from wavenet.conditioning.classes import Classes, class_points, mixture
from wavenet.conditioning.mel import MelSource
from wavenet.conditioning.score import ScoreSource
from wavenet.conditioning.supplied import SuppliedFrames
from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.engine import registry
from wavenet.errors import CheckpointError, ConfigError
from wavenet.generation.generator import Generator
from wavenet.models.wavenet import WaveNet
from wavenet.music.score import ROLL_CHANNELS, Score

POINTS = {"class": "0:cello 0.05:flute:0.5,piano:2 0.1:piano", "class+score": "cello", "class+mel": "b:0.5"}


def source_for(config: WaveNetConfig, seed: int = 0):
    settings = config.conditioning
    assert settings is not None
    features = None
    if settings.features == "score":
        features = ScoreSource(config, tune(seed, 0.3))
    elif settings.features == "mel":
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(0.3 * RATE)).astype(np.float32)
        features = MelSource(config, noise)
    if not settings.class_names:
        return features
    kind = next(name for name, values in KINDS.items() if values.get("class_names") == settings.class_names)
    classes = Classes(config, class_points(POINTS[kind]))
    return classes if features is None else CombinedSource(classes, features)


def naive_logits(model: WaveNet, source, start: int, position: int, fed: np.ndarray) -> np.ndarray:
    """Logits in float64 for the samples after each complete context; fed[i] goes in at position + i."""
    settings = model.config.conditioning
    assert settings is not None
    reach = 0 if settings.features == "none" else 7
    low = (position - start) // settings.hop - 1
    high = (position + len(fed) - start) // settings.hop + 2
    frames = source.read(low - reach, high - low + 2 * reach)[0].numpy()
    values = conditioned.gate_bias(model, frames)
    begun = start + low * settings.hop
    positions = range(position, position + len(fed))
    rows = naive.gate_rows(values, settings.hop, begun, settings.linear, positions)

    config = model.config
    shape = naive.Shape(
        config.quantization_channels, config.residual_channels, config.dilation_channels,
        config.skip_channels, config.head_channels, config.kernel_size, config.stacks,
        config.layers // config.stacks,
    )  # fmt: skip
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return naive.logits(shape, weights, fed, rows)


@pytest.mark.parametrize("interpolation", ["repeat", "linear"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ENGINES)
def test_step_by_step_equals_the_formula(backend, kind, interpolation):
    model = network(config(kind, interpolation=interpolation))
    source, context = source_for(model.config), model.config.receptive_field
    generator = engine(model, backend)
    rng = np.random.default_rng(1)
    primer = rng.integers(0, 32, 50)
    samples = rng.integers(0, 32, 90)
    steering = generator.gate_bias_provider(source)
    state = generator.prime(torch.from_numpy(primer), gate_bias=steering, conditioning_start=11)
    found = [generator.advance(state, torch.from_numpy(samples)[None, :40], steering)]
    found.append(generator.advance(state, torch.from_numpy(samples)[None, 40:], steering))
    # The logits at position p come of the sample before it: what is fed at position p is sample p - 1.
    silence = np.full(context, model.config.silence)
    fed = np.concatenate([silence, primer, samples])[:-1]
    expected = naive_logits(model, source, 11, 1 - context, fed)[len(primer) :]
    np.testing.assert_allclose(torch.cat(found, dim=2)[0].T.cpu(), expected, rtol=2e-4, atol=2e-5)
    # The conditioning has an effect.
    other = naive_logits(model, source, 5000, 1 - context, fed)[len(primer) :]
    assert np.abs(expected - other).max() > 0.01 or source.constant


@pytest.mark.parametrize("kind", KINDS)
def test_the_parallel_form_equals_the_formula(kind):
    model = network(config(kind))
    source, settings, context = (
        source_for(model.config),
        model.config.conditioning,
        model.config.receptive_field,
    )
    fed = np.random.default_rng(2).integers(0, 32, context - 1 + 60)
    # Position 0 is that of the first prediction, which the last of the first `context` samples makes.
    first = -(-context // settings.hop) + 8
    frames = Frames(source.read(-first, first + 60 // settings.hop + 10), -first)
    found = model(torch.from_numpy(fed)[None], model.gate_bias_for(frames))[0].T
    expected = naive_logits(model, source, 0, 1 - context, fed)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ENGINES)
def test_neither_chunks_nor_batch_change_a_stream(backend, kind):
    model = network(config(kind))
    generator = engine(model, backend)
    steps = 150 if backend == "reference" else 5 * BLOCK * 37 // 2

    def drawn(chunk: int | None, batch: int = 1) -> torch.Tensor:
        steering = generator.gate_bias_provider(source_for(model.config))
        state = generator.start(batch, seed=3, gate_bias=steering)
        return torch.cat(list(generator.stream(state, steps, chunk, gate_bias=steering)), dim=1)

    whole = drawn(None)
    for chunk in (7, 100, steps):
        assert torch.equal(drawn(chunk), whole)
    assert torch.equal(drawn(64, batch=3)[0], whole[0])


def test_each_stream_has_its_own_conditioning():
    model = network(config("score"))
    generator = engine(model, "reference")
    values = torch.rand(3, ROLL_CHANNELS, 20)
    state = generator.start(
        3, seed=1, gate_bias=generator.gate_bias_provider(SuppliedFrames(model.config, values))
    )
    together = generator.generate(
        60, state, gate_bias=generator.gate_bias_provider(SuppliedFrames(model.config, values))
    )
    for row in range(3):
        alone = generator.gate_bias_provider(SuppliedFrames(model.config, values[row]))
        state = generator.start(1, seed=1, first_stream=row, gate_bias=alone)
        assert torch.equal(generator.generate(60, state, gate_bias=alone)[0], together[row])


def test_features_alone_say_what_to_generate():
    model = network(config("mel", hop=10))
    generator = engine(model, "reference")
    values = torch.rand(2, 6, 12)
    steering = generator.gate_bias_provider(SuppliedFrames(model.config, values))
    expected = generator.generate(120, generator.start(2, gate_bias=steering), gate_bias=steering)
    assert torch.equal(generator.generate(features=values), expected)
    assert torch.equal(generator.generate(50, features=values), expected[:, :50])
    assert torch.equal(generator.generate(features=values[0])[0], expected[0])
    with pytest.raises(ConfigError, match="features begin new streams"):
        generator.generate(features=values, state=generator.start(2, gate_bias=steering))
    with pytest.raises(ConfigError, match="steps is missing"):
        generator.generate(gate_bias=steering)


def test_frames_may_arrive_during_generation():
    model = network(config("mel", hop=10))
    generator = Generator(model)
    values = torch.rand(6, 200)
    whole = generator.gate_bias_provider(SuppliedFrames(model.config, values))
    expected = generator.generate(2000, generator.start(gate_bias=whole), gate_bias=whole)

    given = SuppliedFrames(model.config, values[:, :30], closed=False)
    steering = generator.gate_bias_provider(given)
    state = generator.start(gate_bias=steering)
    found = []
    for last, first in enumerate((30, 35, 90, 91, 200)):
        if first > 30:
            before = given.values.shape[2]
            given.append(values[:, before:first], last=first == 200)
        ready = given.ready - int(state.position[0])
        assert ready >= 0
        found.append(generator.generate(ready, state, gate_bias=steering))
        if last == 2:
            assert given.ready == (90 - BLOCK - 7) * 10
            with pytest.raises(ConfigError, match="`ready` samples"):
                generator.generate(600, state.clone(), gate_bias=generator.gate_bias_provider(given))
    assert torch.equal(torch.cat(found, dim=1), expected)
    with pytest.raises(ConfigError, match="no frames can be added after"):
        given.append(values)


@pytest.mark.parametrize("backend", ENGINES)
def test_hours_of_frames_leave_nothing_behind(backend):
    model = network(config("score", hop=40))
    steering = engine(model, backend).gate_bias_provider(
        ScoreSource(model.config, tune(0, 3600.0, notes=2000))
    )
    for second in range(0, 3600, 2):
        steering.gate_bias(second * RATE, second * RATE + RATE // 100)
    held = sum(block.numel() for block in steering._blocks.values())
    # 10 s of an hour's worth.
    assert held <= 1024 * 6 * 10


def test_values_outside_the_conditioning():
    rolled = ScoreSource(config("score"), tune(0, 1.0))
    assert not rolled.read(-50, 40).any() and not rolled.read(10**6, 40).any()
    classes = Classes(config("class"), class_points("1:cello 2:piano"))
    assert classes.read(-5, 1)[0, :, 0].tolist() == [1, 0, 0]
    assert classes.read(10**6, 1)[0, :, 0].tolist() == [0, 0, 1]
    given = SuppliedFrames(config("mel"), torch.zeros(6, 4))
    assert given.read(-2, 8)[0, 0].tolist() == [-1, -1, 0, 0, 0, 0, -1, -1]


def test_classes_glide_from_point_to_point():
    classes = Classes(config("class", hop=400), class_points("0:piano 2:cello:0.5,flute 3:piano:0"))
    frames = classes.read(0, 31)[0].numpy()
    times = np.arange(31) / 10
    np.testing.assert_allclose(frames[2], np.interp(times, [0, 2, 3], [1, 0, 0]), atol=1e-6)
    np.testing.assert_allclose(frames[0], np.interp(times, [0, 2, 3], [0, 0.5, 0]), atol=1e-6)
    np.testing.assert_allclose(frames[1], np.interp(times, [0, 2, 3], [0, 1, 0]), atol=1e-6)
    assert not classes.constant and Classes(config("class"), class_points("flute")).constant


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cello", [(0, {"cello": 1})]),
        ("piano:0.7,cello:0.3", [(0, {"piano": 0.7, "cello": 0.3})]),
        ("0:piano 2.5:cello", [(0, {"piano": 1}), (2.5, {"cello": 1})]),
        ("0:a:0.5,b:-1  7:b", [(0, {"a": 0.5, "b": -1}), (7, {"b": 1})]),
    ],
)
def test_classes_are_read_from_text(text, expected):
    assert class_points(text) == expected


@pytest.mark.parametrize("text", ["", "a,", "a:x", "a,a", "a:nan", "0:a b", "a 2:b", "1:a,2:b:c", ":", "0:"])
def test_texts_that_name_no_class(text):
    with pytest.raises(ConfigError):
        Classes(config("class"), class_points(text))


def test_unknown_classes_list_the_known():
    with pytest.raises(ConfigError, match=r"'harp': unknown; .* has the classes cello, flute, piano"):
        Classes(config("class"), class_points("harp"))
    with pytest.raises(ConfigError, match="times must increase"):
        Classes(config("class"), class_points("2:cello 1:piano"))
    assert mixture(["a", "b"], {"b": 0.25}).tolist() == [0, 0.25]


def test_features_of_another_shape_are_an_error():
    mel = config("mel")
    for values in (torch.zeros(5, 9), torch.zeros(6), torch.zeros(2, 3, 6, 9), torch.zeros(6, 9).long()):
        with pytest.raises(ConfigError, match=r"expected floating point \(6, frames\)"):
            SuppliedFrames(mel, values)
    values = torch.zeros(6, 9)
    values[2, 4] = torch.nan
    with pytest.raises(ConfigError, match="frame 4 contains NaN"):
        SuppliedFrames(mel, values)
    with pytest.raises(ConfigError, match="trained with mel features, not with score"):
        ScoreSource(mel, tune(0, 1.0))
    with pytest.raises(ConfigError, match="this network is unconditional"):
        ScoreSource(conditioned.BASE, tune(0, 1.0))
    with pytest.raises(ConfigError, match="trained with no features"):
        MelSource(config("class"), np.zeros(5, np.float32))


def test_a_network_for_features_wants_some():
    generator = engine(network(config("score")), "reference")
    with pytest.raises(ConfigError, match="requires score features"):
        generator.start()
    free = engine(network(config("class")), "reference")
    free.start()
    plain = Generator(WaveNet(conditioned.BASE), "reference")
    with pytest.raises(ConfigError, match="is unconditional"):
        plain.gate_bias_provider(Classes(config("class"), class_points("cello")))


def test_no_weight_at_all_adds_nothing():
    model = network(config("class"))
    bias = model.gate_bias_for(Frames(torch.zeros(1, 3, 4)))
    assert bias is not None and not bias.values.any()


def test_a_conditioned_network_reads_back(tmp_path):
    for kind in KINDS:
        model = network(config(kind))
        model.save_pretrained(tmp_path / kind)
        again = WaveNet.from_pretrained(tmp_path / kind)
        assert again.config == model.config
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])
    text = (tmp_path / "mel" / "config.json").read_text()
    (tmp_path / "mel" / "config.json").write_text(text.replace('"n_mels": 6', '"n_mels": 7'))
    with pytest.raises(CheckpointError, match="conditioner"):
        WaveNet.from_pretrained(tmp_path / "mel")


@pytest.mark.parametrize(
    "wrong",
    [
        dict(),
        dict(features="score", hop=0),
        dict(class_names=("a", "a")),
        dict(features="mel", fmin=500.0, fmax=400.0),
        dict(features="score", interpolation="cubic"),
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError):
        ConditioningConfig(**wrong)


def test_kinds_check_their_settings():
    mel = ConditioningConfig(features="mel", fmax=4001.0)
    with pytest.raises(ConfigError, match="half the sample rate"):
        kinds.check(WaveNetConfig(sample_rate=8000, conditioning=mel))
    with pytest.raises(ConfigError, match="half the sample rate"):
        WaveNet(WaveNetConfig(sample_rate=8000, conditioning=mel))
    chords = WaveNetConfig(conditioning=ConditioningConfig(features="chords"))
    with pytest.raises(ConfigError, match="'chords': unknown kind; choose from mel, score"):
        kinds.check(chords)


def test_training_starts_as_an_unconditional_network():
    torch.manual_seed(0)
    plain = WaveNet(conditioned.BASE).state_dict()
    torch.manual_seed(0)
    conditioned_weights = WaveNet(config("class+score")).state_dict()
    assert all(torch.equal(conditioned_weights[name], value) for name, value in plain.items())
    assert not conditioned_weights["conditioner.projection.weight"].any()


def test_an_empty_score_plays():
    model = network(config("score"))
    generator = engine(model, registry.NAMES[-1])
    empty = Score(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    steering = generator.gate_bias_provider(ScoreSource(model.config, empty))
    assert generator.generate(20, generator.start(gate_bias=steering), gate_bias=steering).shape == (1, 20)


def test_constant_features_do_not_saturate_the_gates():
    """Where they are alike in every frame, the optimiser's steps all go one way."""
    torch.manual_seed(0)
    model = WaveNet(config("score", conditioning_channels=128))
    frames = torch.zeros(2, ROLL_CHANNELS, 40)
    frames[:, [60, 64, 67]] = 0.8
    optimizer = torch.optim.Adam(model.conditioner.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        model.gate_bias_for(Frames(frames)).values.sum().neg().backward()
        optimizer.step()
    # A sum that is pushed up at every step; unbounded it would be in the hundreds.
    assert 1 < float(model.gate_bias_for(Frames(frames)).values.detach().abs().max()) <= 5
