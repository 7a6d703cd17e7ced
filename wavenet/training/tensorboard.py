"""TensorBoard's view of a run, for those who have it installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wavenet.errors import ConfigError
from wavenet.utils.files import cause

TAGS = {
    "train_bits": "bits/train",
    "validation_bits": "bits/validation",
    "final_validation_bits": "bits/final validation",
    "unigram_bits": "bits/unigram",
    "gradient_norm": "step/gradient norm",
    "lr": "step/learning rate",
    "samples_per_second": "step/samples per second",
    "waiting": "step/share of time waiting for data",
}
"""What of `metrics.jsonl` is drawn, and under which names."""

_WINDOW = 512
_RANGE_DB = 80.0


def writer_class() -> Any:
    """Return TensorBoard's writer; `ConfigError` naming the extra if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard: {error.name or 'tensorboard'} is not installed: "
            "pip install 'wavenet[tensorboard]', or leave it out and draw the curves with --plot"
        ) from None
    return SummaryWriter


def spectrogram(audio: torch.Tensor) -> torch.Tensor:
    """Return a picture of audio, float (frequencies, frames) in [0, 1], low frequencies at the bottom.

    Parameters
    ----------
    audio : float tensor (time,)
        Drawn down to 80 dB below its loudest point, on a logarithmic scale.
    """
    window = torch.hann_window(_WINDOW)
    padded = torch.nn.functional.pad(audio.float(), (0, max(0, _WINDOW - len(audio))))
    found = torch.stft(padded, _WINDOW, _WINDOW // 4, window=window, center=False, return_complex=True)
    decibels = 20 * torch.log10(found.abs().clamp(min=1e-9))
    return ((decibels - decibels.max()) / _RANGE_DB + 1).clamp(0, 1).flip(0)


class Board:
    """Writes a run's account where TensorBoard reads it.

    Parameters
    ----------
    folder : Path
    step : int
        The step the run goes on from: what a killed run wrote beyond it is not shown.
    warn : callable
        Told, once, when something cannot be written; that does not end a run.
    """

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None]):
        self.folder = folder
        self.warn = warn
        self._told = False
        self._writer = writer_class()(log_dir=str(folder), purge_step=step + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Write what a record of `metrics.jsonl` holds."""
        for key, tag in TAGS.items():
            if record.get(key) is not None:
                self._try("add_scalar", tag, record[key], record["step"])
        if "validation_bits" in record:
            self._try("flush")

    def audio(self, step: int, audio: torch.Tensor, sample_rate: int) -> None:
        """Write generated audio, float (time,), and its spectrogram."""
        self._try("add_audio", "generated", audio[None], step, sample_rate=sample_rate)
        self._try("add_image", "generated/spectrogram", spectrogram(audio), step, dataformats="HW")
        self._try("flush")

    def close(self) -> None:
        """Write what is left."""
        self._try("close")

    def _try(self, method: str, *arguments: Any, **settings: Any) -> None:
        try:
            getattr(self._writer, method)(*arguments, **settings)
        except OSError as error:
            if not self._told:
                self._told = True
                self.warn(f"warning: {self.folder}: {cause(error)}; training goes on")
