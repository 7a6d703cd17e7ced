"""Small conditional networks, scores, and the conditioner in numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from wavenet.conditioning import registry
from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import BackendError
from wavenet.generation.generator import Generator
from wavenet.models.wavenet import WaveNet
from wavenet.music.score import Score

RATE = 4000
BASE = WaveNetConfig(
    sample_rate=RATE, quantization_channels=32, layers=6, stacks=2, kernel_size=3, residual_channels=6,
    dilation_channels=5, skip_channels=12, head_channels=9,
)  # fmt: skip

KINDS = {
    "class": dict(class_names=("cello", "flute", "piano")),
    "score": dict(features="score"),
    "mel": dict(features="mel", n_mels=6, n_fft=128, fmin=50.0, fmax=2000.0),
    "class+score": dict(class_names=("cello", "piano"), features="score"),
    "class+mel": dict(class_names=("a", "b"), features="mel", n_mels=6, n_fft=128, fmin=50.0, fmax=2000.0),
}


def config(kind: str, hop: int = 37, **changes) -> WaveNetConfig:
    settings = {"hop": hop, "conditioning_channels": 7, **KINDS[kind], **changes}
    return dataclasses.replace(BASE, conditioning=ConditioningConfig(**settings))


ENGINES = ["reference", "numba", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def engine(model: WaveNet, backend: str) -> Generator:
    """Return a generator on a backend; skip the test if the backend cannot run here."""
    try:
        return Generator(model, backend, "cuda" if backend == "cuda" else "cpu", threads=1)
    except BackendError as error:
        pytest.skip(str(error))


def network(config: WaveNetConfig, seed: int = 0) -> WaveNet:
    """Return a network on which conditioning has an effect: no weight is 0 as at the start of training."""
    torch.manual_seed(seed)
    model = WaveNet(config)
    assert model.conditioner is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
        model.conditioner.fit_normalization(
            torch.rand(1, registry.channels(model.config.conditioning), 30) - 0.7
        )
    return model.eval().requires_grad_(False)


def tune(seed: int, seconds: float, notes: int = 12) -> Score:
    """Return a score of random notes."""
    rng = np.random.default_rng(seed)
    onset = np.sort(rng.uniform(0, seconds * 0.8, notes))
    return Score(
        onset, onset + rng.uniform(0.02, 0.4, notes), rng.integers(40, 90, notes), rng.integers(1, 128, notes)
    )


def gate_bias(model: WaveNet, frames: np.ndarray) -> np.ndarray:
    """Return the gate bias of frames (channels, frames) in float64: (frames - 2 * context, layers, gates).

    The context is 7 frames for scores and spectra, and 0 for classes only.
    """
    assert model.config.conditioning is not None
    conditioning = model.config.conditioning
    exact = {name: value.double().numpy() for name, value in model.conditioner.state_dict().items()}
    count, hidden, context = len(conditioning.class_names), 0.0, 0
    if conditioning.features != "none":
        context, values = 7, frames[count:].astype(np.float64)
        values = (values - exact["centre"]) * exact["scale"]
        for number, dilation in enumerate((1, 2, 4)):
            weight, bias = exact[f"frames.{number}.weight"], exact[f"frames.{number}.bias"]
            length = values.shape[1] - 2 * dilation
            taps = [values[:, tap * dilation : tap * dilation + length] for tap in range(3)]
            values = sum(weight[:, :, tap] @ taps[tap] for tap in range(3)) + bias[:, None]
            values = values / np.sqrt(1 + (values**2).mean(axis=0))
            if number < 2:
                values = np.tanh(values)
        hidden = values.T
    if count:
        hidden = hidden + frames[:count, context : frames.shape[1] - context].T @ exact["classes.weight"].T
    layers, gates = model.config.layers, 2 * model.config.dilation_channels
    projected = hidden @ exact["projection.weight"].T * 3 / np.sqrt(conditioning.conditioning_channels)
    return 5 * np.tanh(projected.reshape(-1, layers, gates) / 5)
