"""Configurations: derived values against the published networks, and strictness."""

import dataclasses
import json

import pytest

from wavenet.config import PRESETS, TrainingConfig, WaveNetConfig, preset
from wavenet.errors import ConfigError


@pytest.mark.parametrize(
    ("layers", "stacks", "kernel_size", "receptive_field"),
    [
        (20, 2, 2, 2047),
        (30, 3, 2, 3070),
        (24, 4, 3, 505),
        (40, 4, 2, 4093),
        (50, 5, 2, 5116),
        (30, 3, 3, 6139),
    ],
)
def test_receptive_fields_of_published_networks(layers, stacks, kernel_size, receptive_field):
    config = WaveNetConfig(layers=layers, stacks=stacks, kernel_size=kernel_size)
    assert config.receptive_field == receptive_field
    assert config.queue_steps == receptive_field - 1
    assert config.dilations[: layers // stacks] == tuple(2**i for i in range(layers // stacks))
    assert config.dilations == config.dilations[: layers // stacks] * stacks


def test_presets_are_those_documented():
    sizes = {
        n: (p["layers"], p["stacks"], p["residual_channels"], p["skip_channels"]) for n, p in PRESETS.items()
    }
    assert sizes["small"] == (20, 2, 32, 128)
    assert sizes["base"] == (30, 3, 64, 256)
    assert sizes["large"] == (40, 4, 128, 512)
    assert preset("small") == WaveNetConfig()
    assert preset("tiny", sample_rate=8000).sample_rate == 8000


@pytest.mark.parametrize("config", [WaveNetConfig(), TrainingConfig(), TrainingConfig(silence_db=None)])
def test_json_round_trip(config):
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("cls", [WaveNetConfig, TrainingConfig])
def test_unknown_missing_and_mistyped_keys_are_named(cls):
    values = cls().to_json()
    name = next(iter(values))
    with pytest.raises(ConfigError, match="unknown key 'layerz'"):
        cls.from_json({**values, "layerz": 3})
    with pytest.raises(ConfigError, match=f"'{name}' is missing"):
        cls.from_json({k: v for k, v in values.items() if k != name})
    for wrong in ("16", True, None, 1.5, [1]):
        with pytest.raises(ConfigError, match=name):
            cls.from_json({**values, name: wrong})
    with pytest.raises(ConfigError, match="JSON object"):
        cls.from_json([1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 0),
        ("quantization_channels", 1),
        ("layers", 0),
        ("stacks", 0),
        ("stacks", 21),
        ("kernel_size", 1),
        ("residual_channels", 0),
        ("skip_channels", -1),
        ("normalization", "loud"),
        ("layers", 21),
    ],
)
def test_values_out_of_range_are_errors(field, value):
    with pytest.raises(ConfigError, match=f"{field} = {value!r}"):
        dataclasses.replace(WaveNetConfig(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("segment", 0.0),
        ("segment", float("nan")),
        ("lr", -1.0),
        ("lr", float("inf")),
        ("clip_norm", 0.0),
        ("ema_decay", 1.5),
        ("seed", -1),
        ("precision", "fp8"),
        ("validation_fraction", 1.0),
        ("silence_db", -3.0),
        ("keep", 0),
        ("schedule", "linear"),
        ("accumulate", 0),
        ("dropout", 1.0),
        ("label_smoothing", -0.1),
        ("patience", -1),
    ],
)
def test_training_values_out_of_range_are_errors(field, value):
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(TrainingConfig(), **{field: value})


def test_settings_that_need_another_name_it():
    with pytest.raises(ConfigError, match="validate_every = 0: must be more than 0 when patience is set"):
        TrainingConfig(patience=3, validate_every=0)
    with pytest.raises(ConfigError, match="final_lr_fraction = 0"):
        TrainingConfig(schedule="exponential", final_lr_fraction=0.0)


def test_unreasonable_dilation_is_refused():
    with pytest.raises(ConfigError, match="more stacks"):
        WaveNetConfig(layers=30, stacks=1)


def test_unknown_preset_and_field():
    with pytest.raises(ConfigError, match="tiny, small, base, large"):
        preset("huge")
    with pytest.raises(ConfigError, match="did you mean 'layers'"):
        preset("small", layer=3)
