"""The network: causality, receptive field, saving and loading."""

import json
import subprocess
import sys

import pytest
import torch

from wavenet.config import WaveNetConfig, preset
from wavenet.errors import CheckpointError, ConfigError
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

CONFIGS = [
    WaveNetConfig(
        layers=4, stacks=2, kernel_size=2, residual_channels=4, dilation_channels=5, skip_channels=6,
        head_channels=7, quantization_channels=16,
    ),
    WaveNetConfig(
        layers=3, stacks=1, kernel_size=3, residual_channels=3, dilation_channels=3, skip_channels=3,
        head_channels=3, quantization_channels=11,
    ),
    WaveNetConfig(
        layers=6, stacks=3, kernel_size=4, residual_channels=5, dilation_channels=2, skip_channels=4,
        head_channels=9, quantization_channels=32,
    ),
]  # fmt: skip


def make(config: WaveNetConfig, seed: int = 0) -> WaveNet:
    torch.manual_seed(seed)
    return WaveNet(config)


@pytest.mark.parametrize("config", CONFIGS)
def test_receptive_field_is_exact_by_gradient(config):
    """A logit depends on exactly the last `receptive_field` samples: all of them, and no others."""
    model = make(config).double()
    # A ReLU that is off would hide a dependence.
    for bias in (model.skip.bias, model.head1.bias):
        torch.nn.init.constant_(bias, 5.0)
    steps, field = 5, config.receptive_field
    samples = torch.randint(0, config.quantization_channels, (1, field - 1 + steps))
    embedded = []
    model.embedding.register_forward_hook(lambda *args: embedded.append(args[2]))
    for step in range(steps):
        embedded.clear()
        logits = model(samples)
        gradient = torch.autograd.grad(logits[0, :, step].square().sum(), embedded[0])[0][0]
        reached = gradient.abs().sum(-1) > 0
        expected = torch.zeros(samples.shape[1], dtype=torch.bool)
        expected[step : step + field] = True
        assert torch.equal(reached, expected)


@pytest.mark.parametrize("config", CONFIGS)
def test_later_samples_change_nothing_earlier(config):
    model = make(config)
    samples = torch.randint(0, config.quantization_channels, (2, config.receptive_field + 20))
    changed = samples.clone()
    changed[:, -7:] = (changed[:, -7:] + 1) % config.quantization_channels
    before, after = model(samples), model(changed)
    assert torch.equal(before[:, :, :-7], after[:, :, :-7])
    assert not torch.equal(before[:, :, -7:], after[:, :, -7:])


def test_too_few_samples_are_refused():
    config = CONFIGS[0]
    with pytest.raises(ConfigError, match=f"receptive field of {config.receptive_field}"):
        make(config)(torch.zeros(1, config.receptive_field - 1, dtype=torch.int64))


def test_parameter_counts_of_published_networks():
    # Networks A and D of the literature, counted by hand: embedding + layers + skip + head.
    for name, layers, width, skip in (("base", 30, 64, 256), ("large", 40, 128, 512)):
        layer = 2 * width * 2 * width + 2 * width
        residual = (layers - 1) * (width * width + width)
        head = skip * skip + skip + 256 * skip + 256
        total = 256 * width + layers * layer + residual + layers * width * skip + skip + head
        assert WaveNet(preset(name)).parameter_count == total


def test_gate_bias_is_causal():
    config = CONFIGS[0]
    model = make(config)
    samples = torch.randint(0, config.quantization_channels, (1, config.receptive_field + 30))
    values = torch.zeros(1, 8, config.layers, 2 * config.dilation_channels)
    base = model(samples, GateBias(values, hop=4, start=0))
    assert torch.allclose(base, model(samples), atol=1e-6)
    values[:, 3] = 1.0
    moved = (model(samples, GateBias(values, hop=4, start=0)) - base).abs().amax(1)[0] > 1e-7
    # Frame 3 covers positions 12 to 15; its effect lasts as long as its samples are within reach.
    last = 15 + config.receptive_field - 1 - (config.kernel_size - 1) * config.dilations[0]
    assert moved[12:16].all() and not moved[:12].any() and not moved[last + 1 :].any()


def test_gate_bias_interpolation_and_ends():
    values = torch.tensor([0.0, 1.0, 3.0]).reshape(1, 3, 1, 1).expand(1, 3, 1, 2).contiguous()
    repeat = GateBias(values, hop=4, start=2).at(-3, 20, 0)[0, :, 0]
    linear = GateBias(values, hop=4, start=2, linear=True).at(-3, 20, 0)[0, :, 0]
    positions = range(-3, 17)
    nearest = [[0.0, 1.0, 3.0][min(max((p - 2) // 4, 0), 2)] for p in positions]
    assert repeat.tolist() == nearest
    # Piecewise linear through (2, 0), (6, 1), (10, 3), constant outside.
    import numpy as np

    assert linear.numpy() == pytest.approx(np.interp(list(positions), [2, 6, 10], [0, 1, 3]), abs=1e-6)


LOADING = """
import sys, torch
from wavenet import WaveNet
torch.manual_seed(3)
expected = torch.rand(3)
torch.manual_seed(3)
WaveNet.from_pretrained(sys.argv[1])
assert torch.equal(torch.rand(3), expected), "torch's random numbers went on"
slow = [name for name in ("torch._dynamo", "sympy", "librosa", "scipy", "numba") if name in sys.modules]
assert not slow, f"loads {slow}"
"""


def test_loading_uses_no_random_numbers_or_compiler(tmp_path):
    WaveNet(CONFIGS[0]).save_pretrained(tmp_path / "net")
    command = [sys.executable, "-c", LOADING, str(tmp_path / "net")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def test_save_and_load_give_the_same_network(tmp_path):
    model = make(CONFIGS[1])
    model.save_pretrained(tmp_path / "net")
    again = WaveNet.from_pretrained(tmp_path / "net")
    assert again.config == model.config
    samples = torch.randint(0, 11, (1, model.config.receptive_field + 3))
    assert torch.equal(again(samples), model(samples))
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]
    make(CONFIGS[0]).save_pretrained(tmp_path / "net")
    assert WaveNet.from_pretrained(tmp_path / "net").config == CONFIGS[0]
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def edit_config(directory, **changes):
    path = directory / "config.json"
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda d: (d / "config.json").write_text('{"format": "wav'), "not JSON"),
        (lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
        (lambda d: (d / "config.json").write_text("[1, 2]"), "is not a wavenet checkpoint"),
        (lambda d: edit_config(d, version=99), "format version 99"),
        (lambda d: edit_config(d, network={"layers": 3}), "is missing"),
        (lambda d: edit_config(d, network=None), "expected a JSON object"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "cut short at 0 bytes"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 64), "damaged"),
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-1]),
            "damaged",
        ),
    ],
)
def test_damaged_checkpoints_are_one_clear_line(tmp_path, damage, message):
    make(CONFIGS[1]).save_pretrained(tmp_path / "net")
    damage(tmp_path / "net")
    with pytest.raises(CheckpointError, match=message) as caught:
        WaveNet.from_pretrained(tmp_path / "net")
    assert "\n" not in str(caught.value) and "net" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("skip.bias"), "'skip.bias' is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown tensor 'extra'"),
        (lambda t: t.update({"skip.bias": torch.zeros(4)}), r"\(4,\), the configuration asks for .*\(3,\)"),
        (lambda t: t.update({"skip.bias": torch.zeros(3, dtype=torch.float64)}), "float64"),
        (lambda t: t.update({"skip.bias": torch.full((3,), float("nan"))}), "contains NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    from wavenet.models.serialization import save_tensors

    model = make(CONFIGS[1])
    model.save_pretrained(tmp_path / "net")
    tensors = dict(model.state_dict())
    change(tensors)
    save_tensors(tmp_path / "net" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message):
        WaveNet.from_pretrained(tmp_path / "net")


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        WaveNet.from_pretrained(tmp_path / "nowhere")
