"""Configurations of networks and of training: frozen dataclasses with a strict JSON form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wavenet.errors import ConfigError
from wavenet.utils.json_config import JsonConfig

NORMALIZATIONS = ("none", "peak", "loudness")
TRAINING_PRECISIONS = ("auto", "fp32", "bf16")
SCHEDULES = ("cosine", "exponential", "constant")
NO_FEATURES = "none"
"""Value of `ConditioningConfig.features` for a network without features."""

INTERPOLATIONS = ("repeat", "linear")
MAX_CLASSES = 10_000


@dataclass(frozen=True)
class ConditioningConfig(JsonConfig):
    """Conditioning of a network (van den Oord et al. 2016, section 2.5).

    Attributes
    ----------
    class_names : tuple of str
        Names of the classes; empty for a network without classes.
    features : str
        Kind of the features of each frame, as `wavenet.conditioning.registry` lists them: "mel" (log-mel
        spectrum) or "score" (notes, from MIDI); "none" for a network with classes only.
    hop : int
        Samples per frame.
    conditioning_channels : int
        Width of the convolutions over frames.
    interpolation : str
        Gate bias between frames: "repeat" (that of the last frame) or "linear" (interpolated).
    n_mels, n_fft : int
        Bands of the mel spectrum, and samples of its windows.
    fmin, fmax : float
        Edges of the lowest and the highest band, in Hz.
    """

    class_names: tuple[str, ...] = ()
    features: str = "none"
    hop: int = 160
    conditioning_channels: int = 128
    interpolation: str = "repeat"
    n_mels: int = 80
    n_fft: int = 1024
    fmin: float = 30.0
    fmax: float = 8000.0

    def __post_init__(self) -> None:
        names = self.class_names
        self._require(len(set(names)) == len(names), "class_names", "all different")
        self._require(len(names) <= MAX_CLASSES, "class_names", f"at most {MAX_CLASSES}")
        self._require(
            bool(names) or self.has_features, "features", "a kind of features, as there are no classes"
        )
        self._require_int("hop", 1, 1_000_000)
        self._require_int("conditioning_channels", 1, 65536)
        self._require(self.interpolation in INTERPOLATIONS, "interpolation", f"one of {INTERPOLATIONS}")
        self._require_int("n_mels", 1, 4096)
        self._require_int("n_fft", 16, 1 << 20)
        self._require(0 <= self.fmin < self.fmax < math.inf, "fmin", f"0 or more, below fmax = {self.fmax}")

    @property
    def linear(self) -> bool:
        """Whether the gate bias is interpolated between frames."""
        return self.interpolation == "linear"

    @property
    def has_features(self) -> bool:
        """Whether frames have features besides the weights of classes."""
        return self.features != NO_FEATURES


@dataclass(frozen=True)
class AudioFormat(JsonConfig):
    """The form of audio that recordings are converted to, independent of the network that reads it.

    Attributes
    ----------
    sample_rate : int
        In Hz.
    channels : int
        Always 1: recordings are mixed to mono.
    normalization : str
        Level applied to each recording: "none", "peak" or "loudness".
    """

    sample_rate: int
    channels: int = 1
    normalization: str = "none"

    def __post_init__(self) -> None:
        self._require_int("sample_rate", 100, 1_000_000)
        self._require(self.channels == 1, "channels", "1: recordings are mixed to mono")
        self._require(self.normalization in NORMALIZATIONS, "normalization", f"one of {NORMALIZATIONS}")


@dataclass(frozen=True)
class WaveNetConfig(JsonConfig):
    """A WaveNet and its audio format (van den Oord et al. 2016, sections 2.1 to 2.4).

    Attributes
    ----------
    sample_rate : int
        Samples per second of the audio, in Hz.
    quantization_channels : int
        Classes of the mu-law quantisation.
    layers, stacks : int
        Dilated layers in total, and the number of equal stacks of dilations 1, 2, 4, ... they form.
    kernel_size : int
        Taps of each dilated convolution, at least 2.
    residual_channels, dilation_channels, skip_channels, head_channels : int
        Widths of the residual path, of each branch of the gate, of the skip sum, and between the two
        1x1 convolutions of the head.
    normalization : str
        Level applied to recordings before quantisation: "none", "peak" or "loudness".
    conditioning : ConditioningConfig or None
        None for an unconditional network.
    """

    sample_rate: int = 16000
    quantization_channels: int = 256
    layers: int = 20
    stacks: int = 2
    kernel_size: int = 2
    residual_channels: int = 32
    dilation_channels: int = 32
    skip_channels: int = 128
    head_channels: int = 128
    normalization: str = "none"
    conditioning: ConditioningConfig | None = None

    def __post_init__(self) -> None:
        self._require_int("sample_rate", 100, 1_000_000)
        self._require_int("quantization_channels", 2, 65536)
        self._require_int("layers", 1, 1000)
        self._require_int("stacks", 1, self.layers)
        self._require_int("kernel_size", 2, 64)
        for name in ("residual_channels", "dilation_channels", "skip_channels", "head_channels"):
            self._require_int(name, 1, 65536)
        if self.layers % self.stacks:
            raise ConfigError(f"layers = {self.layers}: must be a multiple of stacks = {self.stacks}")
        # Beyond this the receptive field is hours of audio: almost certainly a typo.
        if self.layers // self.stacks > 24:
            raise ConfigError(
                f"layers = {self.layers} in {self.stacks} stack(s): the largest dilation would be "
                f"2^{self.layers // self.stacks - 1}; use more stacks"
            )
        self._require(self.normalization in NORMALIZATIONS, "normalization", f"one of {NORMALIZATIONS}")

    @property
    def audio_format(self) -> AudioFormat:
        """Format of the audio that the network reads and generates."""
        return AudioFormat(self.sample_rate, normalization=self.normalization)

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilation of each layer, in samples."""
        per_stack = self.layers // self.stacks
        return tuple(2 ** (layer % per_stack) for layer in range(self.layers))

    @property
    def queue_steps(self) -> int:
        """Steps in the queues of all layers: (kernel_size - 1) * sum(dilations)."""
        return (self.kernel_size - 1) * sum(self.dilations)

    @property
    def receptive_field(self) -> int:
        """Past samples that a prediction depends on."""
        return self.queue_steps + 1

    @property
    def silence(self) -> int:
        """Class of amplitude zero, which precedes every stream."""
        return self.quantization_channels // 2


@dataclass(frozen=True)
class TrainingConfig(JsonConfig):
    """Settings of training: all that determine the sequence of losses.

    Attributes
    ----------
    steps : int
        Total number of optimiser steps, over which the learning rate decays.
    batch : int
        Segments per forward and backward pass.
    accumulate : int
        Batches per step, whose gradients are averaged: a batch so many times as large in the memory of one.
    segment : float
        Length of each segment's targets, in seconds.
    lr : float
        Peak learning rate of AdamW, reached after `warmup_steps`.
    schedule : str
        Decay of the learning rate to `final_lr_fraction` of its peak: "cosine", "exponential" (the same
        factor at every step), or "constant" (no decay).
    weight_decay : float
        Decoupled weight decay, on matrices only.
    clip_norm : float
        Largest norm of the gradient.
    dropout : float
        Probability with which each value that enters a dilated convolution is dropped in training.
    label_smoothing : float
        Share of each target's probability that the training loss spreads over all classes; reported bits and
        validation do not smooth.
    ema_decay : float
        Decay per step of the averaged weights, which checkpoints contain for generation.
    seed : int
        Seed of the initial weights and of the segments drawn.
    precision : str
        "fp32", "bf16" (matrix products in bfloat16), or "auto": bf16 where the hardware supports it.
    validate_every, checkpoint_every, sample_every : int
        Interval in steps; 0 disables (a checkpoint at the end is always written).
    patience : int
        Validations without a new best after which training stops; 0 disables early stopping.
    validation_seconds : float
        Audio scored at each validation, sampled evenly from the validation part.
    sample_seconds : float
        Length of the audio generated every `sample_every` steps.
    keep : int
        Numbered checkpoints kept besides the best.
    silence_db : float or None
        Parts of a recording this many dB below its loudest part are removed; None keeps them.
    validation_fraction : float
        Share of the files held out.
    augment_gain : float
        Largest random attenuation of training segments, in dB.
    augment_polarity : bool
        Whether the polarity of training segments is inverted at random.
    augment_speed : float
        Largest random change of a training segment's speed, as a share; the pitch changes with it.
    condition_dropout : float
        Share of a conditioned network's training segments without conditioning.
    checkpoint_layers : bool
        Recompute every layer in the backward pass instead of storing its activations.
    compile : bool
        Whether torch compiles the network before the first step.
    """

    steps: int = 10_000
    batch: int = 2
    segment: float = 0.5
    lr: float = 4e-3
    final_lr_fraction: float = 0.05
    warmup_steps: int = 200
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    precision: str = "auto"
    validate_every: int = 500
    validation_seconds: float = 20.0
    checkpoint_every: int = 500
    sample_every: int = 2000
    sample_seconds: float = 2.0
    keep: int = 2
    silence_db: float | None = 40.0
    validation_fraction: float = 0.1
    schedule: str = "cosine"
    accumulate: int = 1
    dropout: float = 0.0
    label_smoothing: float = 0.0
    patience: int = 0
    augment_gain: float = 0.0
    augment_polarity: bool = False
    condition_dropout: float = 0.1
    checkpoint_layers: bool = False
    augment_speed: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        self._require_int("steps", 1, 10**9)
        self._require_int("batch", 1, 65536)
        self._require_int("accumulate", 1, 65536)
        self._require_int("warmup_steps", 0, 10**9)
        for name in ("validate_every", "checkpoint_every", "sample_every", "patience"):
            self._require_int(name, 0, 10**9)
        self._require_int("keep", 1, 10**6)
        self._require_int("seed", 0, 2**63 - 1)
        self._require_number("segment", 0, 3600)
        self._require_number("lr", 0, 10)
        self._require_number("clip_norm", 0, math.inf)
        self._require_number("validation_seconds", 0, 1e6)
        self._require_number("sample_seconds", 0, 3600)
        for name in ("final_lr_fraction", "weight_decay", "ema_decay"):
            value = getattr(self, name)
            self._require(math.isfinite(value) and 0 <= value <= 1, name, "between 0 and 1")
        for name in ("dropout", "label_smoothing", "condition_dropout"):
            self._require(0 <= getattr(self, name) < 1, name, "at least 0 and less than 1")
        self._require(0 <= self.augment_gain <= 60, "augment_gain", "from 0 to 60 dB")
        self._require(0 <= self.augment_speed <= 1, "augment_speed", "from 0 to 1")
        self._require(0 < self.validation_fraction < 1, "validation_fraction", "between 0 and 1")
        if self.silence_db is not None:
            self._require_number("silence_db", 0, 200)
        self._require(self.precision in TRAINING_PRECISIONS, "precision", f"one of {TRAINING_PRECISIONS}")
        self._require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
        if self.patience:
            self._require(self.validate_every > 0, "validate_every", "more than 0 when patience is set")
        if self.schedule == "exponential":
            self._require(
                self.final_lr_fraction > 0, "final_lr_fraction", "more than 0 for the exponential schedule"
            )

    def _require_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        self._require(
            not math.isnan(value) and low < value <= high, name, f"more than {low} and at most {high}"
        )


def flat(config: WaveNetConfig) -> dict[str, Any]:
    """Return a network's settings as one flat dictionary, without the names of its classes."""
    values = config.to_json()
    conditioning = values.pop("conditioning") or {}
    conditioning.pop("class_names", None)
    return {**values, "features": NO_FEATURES, **conditioning}


PRESETS: dict[str, dict[str, int]] = {
    "tiny": dict(
        layers=16, stacks=2, residual_channels=16, dilation_channels=16, skip_channels=64, head_channels=64
    ),
    "small": dict(
        layers=20, stacks=2, residual_channels=32, dilation_channels=32, skip_channels=128, head_channels=128
    ),
    "base": dict(
        layers=30, stacks=3, residual_channels=64, dilation_channels=64, skip_channels=256, head_channels=256
    ),
    "large": dict(
        layers=40,
        stacks=4,
        residual_channels=128,
        dilation_channels=128,
        skip_channels=512,
        head_channels=512,
    ),
}
"""Named sizes of networks, as overrides of `WaveNetConfig`."""


def preset(name: str, **overrides: Any) -> WaveNetConfig:
    """Return the configuration of a named preset with some fields overridden.

    Raises `ConfigError` for an unknown name (listing the known ones) or field.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return WaveNetConfig.from_json({**WaveNetConfig().to_json(), **PRESETS[name], **overrides})
