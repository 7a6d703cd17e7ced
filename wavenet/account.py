"""What a run says of itself: one line of its account, and one line on a terminal."""

from __future__ import annotations

import math
from typing import Any

from wavenet.config import TrainingConfig
from wavenet.training.schedules import learning_rate
from wavenet.utils.console import duration


def due(step: int, every: int, last: int) -> bool:
    """Whether something that is done every so many steps (0: never), and at the last one, is to be done."""
    return every > 0 and (step % every == 0 or step == last)


TIMED = ("samples_per_second", "waiting")
"""Keys of a record that differ from one run of the same steps to the next."""


def window(
    counters: dict[str, Any], training: TrainingConfig, norm: float, rate: float, waiting: float
) -> dict[str, Any]:
    """Return the record of the steps since the last one, and begin the next window.

    Parameters
    ----------
    counters : dict
        Of the run; those of the window are emptied.
    training : TrainingConfig
    norm : float
        Of the last gradient.
    rate : float
        Targets per second.
    waiting : float
        Share of the time in which the device waited for segments.
    """
    steps = counters["window_steps"]
    record = {
        "step": counters["step"],
        "train_bits": counters["window_bits"] / steps if steps else None,
        "gradient_norm": norm if math.isfinite(norm) else None,
        "lr": learning_rate(training, counters["step"] - 1),
        "skipped": counters["skipped"],
        "samples_per_second": round(rate),
        "waiting": round(waiting, 4),
    }
    counters["train_bits"] = record["train_bits"]
    counters["window_bits"], counters["window_steps"] = 0.0, 0
    return record


def status(counters: dict[str, Any], training: TrainingConfig, rate: float, samples_per_step: int) -> str:
    """Return where a run stands, and how long it will take at `rate` targets per second."""
    parts = [f"step {counters['step']}/{training.steps}"]
    if counters["train_bits"] is not None:
        parts.append(f"train {counters['train_bits']:.3f} bits")
    if counters["validation_bits"] is not None:
        parts.append(f"validation {counters['validation_bits']:.3f}")
    if counters["skipped"]:
        parts.append(f"{counters['skipped']} non-finite steps skipped")
    parts.append(f"{rate:,.0f} samples/s")
    left = (training.steps - counters["step"]) * samples_per_step
    parts.append(f"{duration(left / max(rate, 1e-9))} left")
    return "  ".join(parts)


def final(bits: float, unigram: float) -> str:
    """Return what is said of a finished network's bits per sample, beside the entropy of single samples."""
    side = "below" if bits <= unigram else "above"
    return (
        f"final: validation {bits:.3f} bits per sample, {abs(unigram - bits):.2f} {side} the unigram "
        f"entropy of {unigram:.2f}"
    )
