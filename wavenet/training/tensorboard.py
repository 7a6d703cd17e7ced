"""Records of a run for TensorBoard, if it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wavenet.errors import ConfigError
from wavenet.utils.figures import RANGE_DB, spectrogram
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
"""Keys of `metrics.jsonl` that are written, with their tags."""

_N_FFT = 512


def writer_class() -> Any:
    """Return TensorBoard's writer; `ConfigError` naming the extra if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"{error.name or 'tensorboard'} is not installed: pip install 'wavenet[tensorboard]'",
            argument="tensorboard",
        ) from None
    return SummaryWriter


class Board:
    """Writes a run's records in TensorBoard's format.

    Parameters
    ----------
    folder : Path
    step : int
        The step from which the run continues: records of a killed run beyond it are hidden.
    warn : callable
        Gets a line, once, when something cannot be written; that does not end a run.
    """

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None]):
        self.folder = folder
        self.warn = warn
        self._warned = False
        self._writer = writer_class()(log_dir=str(folder), purge_step=step + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Write the values of a record of `metrics.jsonl`."""
        for key, tag in TAGS.items():
            if record.get(key) is not None:
                self._try("add_scalar", tag, record[key], record["step"])
        if "validation_bits" in record:
            self._try("flush")

    def audio(self, step: int, audio: torch.Tensor, sample_rate: int) -> None:
        """Write generated audio, float (time,), and its spectrogram, low frequencies at the bottom."""
        self._try("add_audio", "generated", audio[None], step, sample_rate=sample_rate)
        levels = spectrogram(audio.numpy(), _N_FFT, _N_FFT // 4)[::-1] / RANGE_DB + 1
        self._try("add_image", "generated/spectrogram", levels, step, dataformats="HW")
        self._try("flush")

    def close(self) -> None:
        """Write everything that is still buffered."""
        self._try("close")

    def _try(self, method: str, *arguments: Any, **settings: Any) -> None:
        try:
            getattr(self._writer, method)(*arguments, **settings)
        except OSError as error:
            if not self._warned:
                self._warned = True
                self.warn(f"warning: {self.folder}: {cause(error)}; training continues")
