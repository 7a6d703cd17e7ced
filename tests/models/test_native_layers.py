"""Training's layers in the extension, against the same network in float64 and through torch's operators."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import UNAVAILABLE

from wavenet.config import TrainingConfig, WaveNetConfig
from wavenet.data.batch import Segments
from wavenet.models import native_layers
from wavenet.models.gate_bias import GateBias
from wavenet.models.losses import cross_entropy
from wavenet.models.wavenet import WaveNet
from wavenet.training.step import accumulate_gradients
from wavenet.training.wavenet_objective import WaveNetObjective

pytestmark = pytest.mark.skipif(
    UNAVAILABLE is not None or not torch.ops.wavenet.cpu_can_train(False),
    reason="needs the extension and AVX2",
)
needs_bf16 = pytest.mark.skipif(
    UNAVAILABLE is None and not torch.ops.wavenet.cpu_can_train(True), reason="needs AVX-512 with bfloat16"
)

EVEN = WaveNetConfig(
    quantization_channels=16, layers=5, stacks=1, residual_channels=32, dilation_channels=32,
    skip_channels=12, head_channels=12,
)  # fmt: skip
ODD = WaveNetConfig(
    quantization_channels=16, layers=4, stacks=2, kernel_size=3, residual_channels=19, dilation_channels=21,
    skip_channels=12, head_channels=12,
)  # fmt: skip
WIDE = WaveNetConfig(
    quantization_channels=16, layers=3, stacks=1, residual_channels=80, dilation_channels=70,
    skip_channels=12, head_channels=12,
)  # fmt: skip


def network(config: WaveNetConfig, seed: int = 0) -> WaveNet:
    torch.manual_seed(seed)
    model = WaveNet(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def bias_for(config: WaveNetConfig, batch: int, hop: int, start: int, linear: bool) -> GateBias:
    values = torch.randn(batch, 7, config.layers, 2 * config.dilation_channels)
    return GateBias(values, hop, start, linear)


def differentiate(
    model: WaveNet, samples: torch.Tensor, bias: GateBias | None, weights: torch.Tensor, bf16: bool = False
) -> dict[str, torch.Tensor]:
    """Return the logits, and the gradients of a weighted sum of them."""
    model.zero_grad()
    if bias is not None:
        bias = dataclasses.replace(bias, values=bias.values.detach().clone().requires_grad_(True))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(samples, bias, position=11)
    (logits.double() * weights).sum().backward()
    found = {"logits": logits.detach().double()}
    found |= {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}
    if bias is not None and bias.values.grad is not None:
        found["frames"] = bias.values.grad.double().clone()
    return found


def exact(
    model: WaveNet, samples: torch.Tensor, bias: GateBias | None, weights: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The same by plain formulas in float64: every layer over a loop of taps, autograd behind it."""
    config, parameters = model.config, dict(model.named_parameters())
    values = {name: p.detach().double().requires_grad_(True) for name, p in parameters.items()}
    frames = None if bias is None else bias.values.detach().double().requires_grad_(True)
    hidden = values["embedding.weight"][samples]
    steps = samples.shape[1] - config.receptive_field + 1
    end, kept = 11 + steps, []
    for index, dilation in enumerate(config.dilations):
        name = f"layers.{index}"
        length = hidden.shape[1] - (config.kernel_size - 1) * dilation
        weight = values[f"{name}.dilated.weight"].unflatten(1, (config.kernel_size, -1))
        activation = values[f"{name}.dilated.bias"] + sum(
            hidden[:, tap * dilation : tap * dilation + length] @ weight[:, tap].T
            for tap in range(config.kernel_size)
        )
        if frames is not None and bias is not None:
            offset = np.arange(end - length, end) - bias.start
            frame, within = np.floor_divide(offset, bias.hop), np.mod(offset, bias.hop)
            here = frames[:, np.clip(frame, 0, frames.shape[1] - 1), index]
            after = frames[:, np.clip(frame + 1, 0, frames.shape[1] - 1), index]
            share = torch.from_numpy(within / bias.hop)[:, None] if bias.linear else 0.0
            activation = activation + (1 - share) * here + share * after
        filtered, gated = activation.chunk(2, dim=-1)
        gate = torch.tanh(filtered) * torch.sigmoid(gated)
        kept.append(gate[:, -steps:])
        if index + 1 < config.layers:
            residual = gate @ values[f"{name}.residual.weight"].T + values[f"{name}.residual.bias"]
            hidden = hidden[:, -length:] + residual
    skip = torch.cat(kept, -1) @ values["skip.weight"].T + values["skip.bias"]
    head = torch.relu(torch.relu(skip) @ values["head1.weight"].T + values["head1.bias"])
    logits = (head @ values["head2.weight"].T + values["head2.bias"]).transpose(1, 2)
    (logits * weights).sum().backward()
    found = {"logits": logits.detach()}
    found |= {name: value.grad for name, value in values.items() if value.grad is not None}
    if frames is not None and frames.grad is not None:
        found["frames"] = frames.grad
    return found


def errors(found: dict[str, torch.Tensor], true: dict[str, torch.Tensor]) -> dict[str, float]:
    assert found.keys() == true.keys()
    # A gradient may be nothing at all, where no rectifier lets it pass.
    return {name: float((found[name] - true[name]).norm() / max(true[name].norm(), 1e-9)) for name in true}


def problem(config: WaveNetConfig, batch: int = 2, steps: int = 101) -> tuple[torch.Tensor, torch.Tensor]:
    samples = torch.randint(config.quantization_channels, (batch, config.receptive_field - 1 + steps))
    return samples, torch.randn(batch, config.quantization_channels, steps, dtype=torch.float64)


@pytest.fixture
def counted(monkeypatch):
    """How often the stack was taken."""
    calls = []
    take = native_layers.gates
    monkeypatch.setattr(native_layers, "gates", lambda *given: calls.append(1) or take(*given))
    return calls


@pytest.mark.parametrize("config", [EVEN, ODD, WIDE], ids=["even", "odd", "wide"])
@pytest.mark.parametrize("told", [None, (13, -5, True), (10, 4, False), (10, 400, True), (1, -9, False)])
def test_gradients_are_those_of_the_formulas(config, told, counted):
    model = network(config)
    bias = None if told is None else bias_for(config, 2, *told)
    samples, weights = problem(config)
    found = differentiate(model, samples, bias, weights)
    assert counted
    assert max(errors(found, exact(model, samples, bias, weights)).values()) < 1e-5


@needs_bf16
@pytest.mark.parametrize("config", [EVEN, ODD, WIDE], ids=["even", "odd", "wide"])
@pytest.mark.parametrize("told", [None, (13, -5, True)])
def test_bfloat16_costs_no_more_than_with_torch(config, told, counted, monkeypatch):
    torch.manual_seed(0)
    model = WaveNet(config)
    bias = None if told is None else bias_for(config, 2, *told)
    samples, weights = problem(config, steps=600)
    true = exact(model, samples, bias, weights)
    found = errors(differentiate(model, samples, bias, weights, bf16=True), true)
    assert counted
    monkeypatch.setattr(native_layers, "usable", lambda hidden: False)
    usual = errors(differentiate(model, samples, bias, weights, bf16=True), true)
    # Of gradients that cancel over many samples the rounding is a larger part, in either way.
    assert max(found.values()) <= 1.25 * max(usual.values())
    assert np.mean(list(found.values())) <= 1.25 * np.mean(list(usual.values()))


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(2, 4), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 120), st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape(residual, channels, taps, layers, batch, steps, seed):
    config = WaveNetConfig(
        quantization_channels=5, layers=layers, stacks=1, kernel_size=taps, residual_channels=residual,
        dilation_channels=channels, skip_channels=4, head_channels=4,
    )  # fmt: skip
    model = network(config, seed)
    samples, weights = problem(config, batch, steps)
    found = errors(differentiate(model, samples, None, weights), exact(model, samples, None, weights))
    # Of few values one may be almost zero, and its relative error large.
    assert np.median(list(found.values())) < 1e-5 and max(found.values()) < 1e-3


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=needs_bf16)])
def test_threads_change_no_bit(bf16):
    model, (samples, weights) = network(EVEN), problem(EVEN, 3, 700)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(differentiate(model, samples, None, weights, bf16))
    finally:
        torch.set_num_threads(before)
    layers = [name for name in results[0] if name.startswith("layers")]
    assert layers
    for other in results[1:]:
        for name in layers:
            assert torch.equal(results[0][name], other[name]), name


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=needs_bf16)])
def test_the_operators_keep_their_promises(bf16):
    kind = torch.bfloat16 if bf16 else torch.float32
    batch, steps, residual, channels, dilation = 2, 30, 8, 6, 4
    x = torch.randn(batch, steps + dilation, residual)
    weights = (
        torch.randn(2 * channels, 2 * residual), torch.randn(2 * channels), torch.randn(residual, channels),
        torch.randn(residual),
    )  # fmt: skip
    told = torch.randn(batch, 3, 2, 2 * channels)[:, :, 1]
    gates = torch.zeros(batch, 20, 3 * channels, dtype=kind)[:, :, channels : 2 * channels]
    given = (dilation, 7, -2, True, bf16)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.wavenet.gated_layer, (x, *weights, told, gates, *given), test_utils=checks
    )
    halves, y = torch.ops.wavenet.gated_layer(x, *weights, told, gates, *given)
    torch.library.opcheck(
        torch.ops.wavenet.gated_layer_backward,
        (x, *weights, told, halves, gates, torch.randn_like(y), *given),
        test_utils=checks,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(x=torch.zeros(1, 5, 8)), "shorter than the receptive field"),
        (dict(x=torch.zeros(1, 40, 8, dtype=torch.float64)), "x is Double"),
        (dict(dilation=0), "dilation = 0"),
        (dict(bias=torch.zeros(11)), "dilated_bias has 11"),
        (dict(gates=torch.zeros(1, 39, 6)), "gates has 39 steps"),
        (dict(gates=torch.zeros(2, 9, 6)), "gates is (2, 9, 6)"),
        (dict(told=torch.zeros(1, 0, 12)), "no frames"),
    ],
)
def test_wrong_arguments_are_refused(change, words):
    given = dict(
        x=torch.zeros(1, 40, 8), weight=torch.zeros(12, 16), bias=torch.zeros(12), out=torch.zeros(8, 6),
        out_bias=torch.zeros(8), told=None, gates=torch.zeros(1, 20, 6), dilation=8, hop=4, start=0,
        linear=False, bf16=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=words.replace("(", r"\(").replace(")", r"\)")):
        torch.ops.wavenet.gated_layer(*(given | change).values())


def test_what_is_not_trained_here_goes_another_way(counted):
    model, (samples, weights) = network(EVEN), problem(EVEN)
    with torch.autocast("cpu", torch.float16):
        model(samples)
    model.double()(samples)
    assert not counted
    found = differentiate(network(EVEN), samples, None, weights)["logits"]
    assert len(counted) == 1
    with torch.inference_mode():
        assert torch.equal(network(EVEN)(samples).double(), found)
    assert len(counted) == 2


def test_dropout_goes_another_way(counted):
    samples, _ = problem(EVEN, 2, 20)
    segments = Segments(samples, samples[:, -20:].clone(), None)
    for dropout, calls in ((0.5, 0), (0.0, 1)):
        training = TrainingConfig(batch=2, dropout=dropout, precision="fp32")
        objective = WaveNetObjective(EVEN, training)
        accumulate_gradients(objective, objective.build(), training, 0, segments, torch.device("cpu"))
        assert len(counted) == calls


def test_instruction_sets_agree(tmp_path):
    """Each set in a process of its own, as it is chosen once."""
    program = tmp_path / "program.py"
    program.write_text(
        "import torch, sys\nfrom test_native_layers import *\n"
        "model, (samples, weights) = network(ODD), problem(ODD)\n"
        "print(torch.ops.wavenet.cpu_instruction_set(), native_layers.usable(model.embedding(samples)))\n"
        "torch.save(differentiate(model, samples, None, weights), sys.argv[1])\n"
    )
    results = {}
    path = os.pathsep.join(str(folder) for folder in Path(__file__).parents[:3])
    for name in torch.ops.wavenet.cpu_instruction_sets().split():
        result = subprocess.run(
            [sys.executable, str(program), str(tmp_path / name)],
            env={**os.environ, "WAVENET_CPU": name, "PYTHONPATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert result.stdout.split() == [name, str(name != "base")]
        results[name] = torch.load(tmp_path / name)
    for found in results.values():
        assert max(errors(found, results["base"]).values()) < 1e-5


# -- the loss ---------------------------------------------------------------------------------------------


def entropies_in_float64(logits: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross-entropies of rows and their gradients, by the formula; 0 where targets are -1."""
    rows = logits.double().numpy()
    rows = rows - rows.max(1, keepdims=True)
    probabilities = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    wanted = np.eye(rows.shape[1])[np.maximum(targets.numpy(), 0)]
    used = targets.numpy() >= 0
    nats = np.log(np.exp(rows).sum(1)) - (rows * wanted).sum(1)
    return np.where(used, nats, 0), np.where(used[:, None], probabilities - wanted, 0)


@given(
    rows=st.integers(0, 70),
    classes=st.integers(1, 300),
    scale=st.sampled_from([0.1, 3, 40]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_cross_entropies_against_float64(rows, classes, scale, seed):
    torch.manual_seed(seed)
    logits = scale * torch.randn(rows, classes) + scale
    targets = torch.randint(-1, classes, (rows,))
    weights = torch.randn(rows)
    logits.requires_grad_(True)
    found = native_layers.cross_entropies(logits, targets, -1)
    (found * weights).sum().backward()
    nats, gradients = entropies_in_float64(logits.detach(), targets)
    np.testing.assert_allclose(found.detach(), nats, rtol=2e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(
        logits.grad, weights.double()[:, None].numpy() * gradients, rtol=2e-5, atol=1e-6 * scale
    )


@needs_bf16
@pytest.mark.parametrize("classes", [256, 250, 7])
def test_cross_entropy_of_bfloat16_logits(classes):
    torch.manual_seed(0)
    logits = (4 * torch.randn(200, classes)).bfloat16()
    targets = torch.randint(-1, classes, (200,))
    logits.requires_grad_(True)
    found = native_layers.cross_entropies(logits, targets, -1)
    found.sum().backward()
    nats, gradients = entropies_in_float64(logits.detach(), targets)
    assert logits.grad is not None
    assert found.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16
    np.testing.assert_allclose(found.detach(), nats, rtol=2e-6, atol=4e-6)
    # Of 8 binary digits, the first of which is 1, half a unit of the last: 2^-8 at most. And a sum of float32
    # probabilities is not nearer to 1 than their last digit.
    np.testing.assert_allclose(logits.grad.double(), gradients, rtol=1.01 * 2**-8, atol=2**-23)


def test_cross_entropies_of_far_logits_and_of_none():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 0.0, 0.0], [torch.nan, 0.0, 0.0], [3e38, 0.0, 0.0]])
    targets = torch.tensor([0, 1, 2, 1])
    logits.requires_grad_(True)
    found = native_layers.cross_entropies(logits, targets, -1)
    expected = torch.nn.functional.cross_entropy(logits.detach(), targets, reduction="none")
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-6)
    found[:2].sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(logits.grad[1], [0, -0.5, 0.5], atol=1e-7)
    assert native_layers.cross_entropies(logits[:0], targets[:0], -1).tolist() == []


@pytest.mark.parametrize("target", [3, -2])
def test_a_target_that_is_no_class_is_refused(target):
    with pytest.raises(RuntimeError, match=f"target {target} is out of range: there are 3 classes"):
        native_layers.cross_entropies(torch.zeros(2, 3), torch.tensor([0, target]), -1)


def test_the_loss_does_not_depend_on_threads():
    torch.manual_seed(0)
    logits, targets = torch.randn(1000, 256), torch.randint(256, (1000,))

    def found(threads):
        torch.set_num_threads(threads)
        rows = logits.clone().requires_grad_(True)
        nats = native_layers.cross_entropies(rows, targets, -1)
        return nats.detach(), *torch.autograd.grad(nats.sum(), rows)

    before = torch.get_num_threads()
    try:
        one, two = found(1), found(2)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_equals_that_without_extension(reduction, monkeypatch):
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 9, 30), torch.randint(-1, 9, (2, 30))
    native = cross_entropy(logits, targets, reduction, native_layers.cross_entropy_per_target)
    plain = cross_entropy(logits, targets, reduction)
    np.testing.assert_allclose(native, plain, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(native_layers, "can_score", lambda rows: False)
    fallback = cross_entropy(logits, targets, reduction, native_layers.cross_entropy_per_target)
    assert torch.equal(fallback, plain)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_opcheck_of_the_loss(dtype):
    checks = ("test_schema", "test_faketensor")
    logits, targets, ops = torch.randn(7, 20).to(dtype), torch.randint(-1, 20, (7,)), torch.ops.wavenet
    torch.library.opcheck(ops.cross_entropy.default, (logits, targets, -1), test_utils=checks)
    found = ops.cross_entropy(logits, targets, -1)
    given = (logits, targets, *found, torch.randn(7), -1)
    torch.library.opcheck(ops.cross_entropy_backward.default, given, test_utils=checks)
