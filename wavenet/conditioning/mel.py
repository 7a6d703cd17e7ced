"""Conditioning on the log-mel spectrum of a recording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wavenet.conditioning.base import Input, Kind, TrainingSegment, as_tensor, require_features
from wavenet.config import ConditioningConfig, WaveNetConfig
from wavenet.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from wavenet.audio.levels import Signal

SILENT_MEL = -1.0
"""Value of `log_mel` for silence."""


class MelSource:
    """The mel spectrum of a recording, computed as it is read.

    Parameters
    ----------
    config : WaveNetConfig
    signal : array or anything that can be sliced, float32 (samples,)
        At the network's sample rate.

    Raises
    ------
    ConfigError
        If the network was not trained with mel features.
    """

    constant = False
    complete = True

    def __init__(self, config: WaveNetConfig, signal: Signal):
        require_features(config, "mel")
        self.config = config
        self.signal = signal

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames of the spectrum; see `FrameSource`."""
        return as_tensor(_spectrum(self.config, self.signal, first, count))


class MelKind(Kind):
    """Log-mel spectra, of `n_mels` bands from `fmin` to `fmax` and windows of `n_fft` samples."""

    name = "mel"
    silence = SILENT_MEL

    def channels(self, conditioning: ConditioningConfig) -> int:
        """Return the number of mel bands."""
        return conditioning.n_mels

    def check(self, config: WaveNetConfig) -> None:
        """Raise `ConfigError` if the highest band ends above half the sample rate."""
        fmax, limit = require_features(config, self.name).fmax, config.sample_rate / 2
        if fmax > limit:
            raise ConfigError(f"fmax = {fmax:g} Hz: must be at most half the sample rate, {limit:g} Hz")

    def audio_hops(self, conditioning: ConditioningConfig) -> int:
        """Return the hops that half a window spans."""
        return -(-conditioning.n_fft // 2 // conditioning.hop)

    def segment_frames(self, segment: TrainingSegment) -> np.ndarray:
        """Return the spectrum of a training segment, float32 (n_mels, frames)."""
        first = segment.first - segment.audio_frame
        return _spectrum(segment.config, segment.audio, first, segment.stop - segment.first)


def _spectrum(config: WaveNetConfig, signal: Signal, first: int, count: int) -> np.ndarray:
    from wavenet.audio.mel import log_mel_frames

    settings = require_features(config, MelKind.name)
    return log_mel_frames(
        signal,
        first,
        count,
        config.sample_rate,
        settings.n_fft,
        settings.hop,
        settings.n_mels,
        settings.fmin,
        settings.fmax,
    )


def _from_recording(config: WaveNetConfig, path: Path) -> tuple[MelSource, float]:
    from wavenet.audio.decoding import load_audio

    audio = load_audio(path, config.sample_rate, config.normalization)
    return MelSource(config, audio), len(audio) / config.sample_rate


MelKind.inputs = (Input("mel_from", "recording with the mel spectrum to follow", _from_recording),)
