"""Schedules of the learning rate and of weight averaging, as functions of the step alone."""

from __future__ import annotations

import math

from wavenet.config import TrainingConfig


def learning_rate(training: TrainingConfig, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up times a decay to `final_lr_fraction` of the peak.

    The decay is a cosine (Loshchilov and Hutter 2017), exponential, or none, by `training.schedule`.
    """
    warm = min(1.0, (step + 1) / max(1, training.warmup_steps))
    progress = min(1.0, step / training.steps)
    floor = training.final_lr_fraction
    if training.schedule == "constant":
        return training.lr * warm
    if training.schedule == "exponential":
        return training.lr * warm * floor**progress
    return training.lr * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def ema_decay(training: TrainingConfig, updates: int) -> float:
    """Return the averaging decay after so many updates; small at first, to forget the random start."""
    return min(training.ema_decay, (1 + updates) / (10 + updates))
