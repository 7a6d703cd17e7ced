"""Conditioning on log-mel spectra of a recording."""

from __future__ import annotations

import torch

from wavenet.audio.levels import Signal
from wavenet.audio.mel import log_mel_frames
from wavenet.conditioning.base import require_conditioning, require_features
from wavenet.config import WaveNetConfig

SILENT_MEL = -1.0
"""What `log_mel` gives for silence."""


class MelSource:
    """The mel spectrum of a recording, computed as it is needed.

    Parameters
    ----------
    config : WaveNetConfig
    signal : array or anything read in slices, float32 (samples,)
        At the network's rate.
    """

    constant = False
    complete = True

    def __init__(self, config: WaveNetConfig, signal: Signal):
        require_features(config, "mel")
        self.config = config
        self.signal = signal

    def read(self, first: int, count: int) -> torch.Tensor:
        """Return the frames of the spectrum; see `FrameSource`."""
        conditioning = require_conditioning(self.config)
        return torch.from_numpy(
            log_mel_frames(
                self.signal,
                first,
                count,
                self.config.sample_rate,
                conditioning.n_fft,
                conditioning.hop,
                conditioning.n_mels,
                conditioning.fmin,
                conditioning.fmax,
            )
        )[None]
