"""Watches a run: keeps track of the best validation, and warns of signs that training fails."""

from __future__ import annotations

import math
from collections.abc import Callable

from wavenet.config import TrainingConfig
from wavenet.training.progress import TrainingProgress

STALE_LIMIT = 5
"""Validations in a row without a new best after which a rise is reported."""

RISE_FACTOR = 1.01
"""A validation has risen, rather than levelled off, if it is more than this many times the best."""

CLIP_WINDOW = 200
"""Steps per window of clipping statistics."""

CLIP_SHARE = 0.9
"""Share of heavily clipped steps in a window above which clipping is reported."""


class Monitor:
    """Checks steps and validations, and reports what the user should know.

    Parameters
    ----------
    training : TrainingConfig
    progress : TrainingProgress
        The counters of the run; those of validations and clipping are updated here.
    report : callable
        Gets a line for the user.
    """

    def __init__(self, training: TrainingConfig, progress: TrainingProgress, report: Callable[[str], None]):
        self.training = training
        self.progress = progress
        self.report = report

    @property
    def warmed_up(self) -> bool:
        """Whether the learning rate has been at its peak for as long as the warm-up took."""
        return self.progress.step > 2 * self.training.warmup_steps

    @property
    def patience_is_over(self) -> bool:
        """Whether as many validations as `training.patience` have brought no new best."""
        return 0 < self.training.patience <= self.progress.stale_validations

    def step(self, norm: float) -> None:
        """Check a step's gradient norm before clipping."""
        progress, limit = self.progress, self.training.clip_norm
        if progress.clipping_reported or not self.warmed_up:
            return
        progress.clip_steps += 1
        # Healthy runs clip a little at most steps; only steps that lose most of the gradient count.
        progress.heavily_clipped_steps += not norm <= 2 * limit
        if progress.clip_steps < CLIP_WINDOW:
            return
        share = progress.heavily_clipped_steps / progress.clip_steps
        progress.clip_steps = progress.heavily_clipped_steps = 0
        if share > CLIP_SHARE:
            progress.clipping_reported = True
            self.report(
                f"warning: clipping removed more than half of the gradient in {share:.0%} of the last "
                f"{CLIP_WINDOW} steps (last norm: {norm:.3g}): raise clip_norm (now {limit:g}) or lower lr"
            )

    def validation(self, bits: float, unigram: float) -> bool:
        """Check a validation, in bits per sample; return whether it is the best so far."""
        progress = self.progress
        if self.warmed_up and bits > unigram:
            self.report(
                "warning: the network is not yet better than the unigram baseline; if this persists, lower lr"
            )
        if not math.isfinite(bits):
            self.report(f"warning: validation returned {bits}; if this persists, lower lr")
        best = progress.best_bits
        if math.isfinite(bits) and (best is None or bits < best):
            progress.stale_validations, progress.overfitting_reported = 0, False
            return True
        progress.stale_validations += 1
        risen = best is not None and bits > RISE_FACTOR * best
        if risen and progress.stale_validations >= STALE_LIMIT and not progress.overfitting_reported:
            progress.overfitting_reported = True
            self.report(
                f"warning: no better validation in the last {progress.stale_validations}, from {best:.3f} to "
                f"{bits:.3f}: the network is overfitting; the best, of step {progress.best_step}, is kept in "
                "best/ (more recordings, dropout or patience help)"
            )
        return False

    def new_best(self, bits: float) -> None:
        """Record that the network of this step is saved as the best."""
        self.progress.best_bits, self.progress.best_step = bits, self.progress.step

    def ended(self) -> None:
        """Report the end of the run if patience ended it early."""
        progress = self.progress
        if self.patience_is_over:
            best = progress.best_bits
            kept = "" if best is None else f"; the best, {best:.3f} of step {progress.best_step}, is in best/"
            self.report(
                f"step {progress.step}: no better validation in the last {progress.stale_validations}: "
                f"the run ends early{kept} (to continue, resume with patience 0)"
            )

    def forget_best(self) -> None:
        """Discard the best validation, because the data has changed."""
        progress = self.progress
        progress.best_bits = progress.best_step = None
        progress.stale_validations, progress.overfitting_reported = 0, False
