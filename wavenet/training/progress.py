"""The state that a training run counts: typed, saved in every checkpoint, and read back strictly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from wavenet.config import TrainingConfig
from wavenet.utils.json_config import JsonConfig


@dataclass
class TrainingProgress(JsonConfig):
    """Counters of a run; the defaults are those before the first step.

    Attributes
    ----------
    step : int
        Steps done, skipped ones included.
    skipped : int
        Steps whose loss or gradient was not finite, and which changed no weight.
    skipped_in_a_row : int
        How many of them were the latest steps.
    best_bits : float or None
        Lowest validation score so far, in bits per sample.
    best_step : int or None
        The step of that validation.
    train_bits : float or None
        Mean training loss of the last complete window of steps, in bits per sample.
    validation_bits : float or None
        Score of the last validation, None if it was not finite.
    window_bits : float
        Sum of the training losses since the last record of `metrics.jsonl`, in bits per sample.
    window_steps : int
        Number of losses in that sum.
    stale_validations : int
        Validations since the best one.
    overfitting_reported : bool
        Whether the user was warned of overfitting since the best validation.
    clip_steps : int
        Steps in the current window of clipping statistics.
    heavily_clipped_steps : int
        How many of them lost more than half of their gradient to clipping.
    clipping_reported : bool
        Whether the user was warned of clipping.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_bits: float | None = None
    best_step: int | None = None
    train_bits: float | None = None
    validation_bits: float | None = None
    window_bits: float = 0.0
    window_steps: int = 0
    stale_validations: int = 0
    overfitting_reported: bool = False
    clip_steps: int = 0
    heavily_clipped_steps: int = 0
    clipping_reported: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                self._require(0 <= value < 2**53, field.name, "0 or more, and less than 2^53")


@dataclass(frozen=True)
class TrainingRecord(JsonConfig):
    """Contents of `training.json` in a checkpoint: everything but tensors that a run needs to continue.

    Attributes
    ----------
    progress : TrainingProgress
    training : TrainingConfig
    source : dict
        JSON values that name the recordings of the run.
    data : str
        Fingerprint of the prepared audio (`resume.fingerprint`).
    threads : int
        CPU threads of torch; with another number sums are rounded differently.
    processes : int
        Number of processes that trained together.
    """

    progress: TrainingProgress
    training: TrainingConfig
    source: dict
    data: str
    threads: int
    processes: int
