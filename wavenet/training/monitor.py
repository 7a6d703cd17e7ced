"""What a run watches of itself: the best validation, and signs that it goes wrong, each told in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from wavenet.config import TrainingConfig

COUNTERS: dict[str, Any] = {"stale": 0, "risen_told": 0, "clip_steps": 0, "clip_hits": 0, "clip_told": 0}
"""The counters kept here, with the values that older checkpoints, which have not got them, stand for."""

RISEN_AFTER = 5
"""Validations in a row without a new best after which a rise is no chance."""

RISEN_BY = 1.01
"""Times the best that a validation must be to have risen rather than levelled off."""

CLIP_WINDOW = 200
"""Steps over which clipping is looked at."""

CLIP_SHARE = 0.9


class Watch:
    """Looks at steps and validations and tells what stands out.

    Parameters
    ----------
    training : TrainingConfig
    counters : dict
        Of the run; those in `COUNTERS` and of the best validation are changed, and saved with it.
    tell : callable
        Takes a line for the user.
    """

    def __init__(self, training: TrainingConfig, counters: dict[str, Any], tell: Callable[[str], None]):
        self.training = training
        self.counters = counters
        self.tell = tell

    @property
    def warmed_up(self) -> bool:
        """Whether the learning rate has been at its peak for as long as it took to get there."""
        return self.counters["step"] > 2 * self.training.warmup_steps

    @property
    def patience_is_over(self) -> bool:
        """Whether validations have brought nothing new for as long as `training.patience` allows."""
        return 0 < self.training.patience <= self.counters["stale"]

    def step(self, norm: float) -> None:
        """Look at a step's gradient norm before clipping."""
        counters, limit = self.counters, self.training.clip_norm
        if counters["clip_told"] or not self.warmed_up:
            return
        counters["clip_steps"] += 1
        # Healthy runs are clipped a little at most steps; counted is where most of the gradient is lost.
        counters["clip_hits"] += not norm <= 2 * limit
        if counters["clip_steps"] < CLIP_WINDOW:
            return
        share = counters["clip_hits"] / counters["clip_steps"]
        counters["clip_steps"] = counters["clip_hits"] = 0
        if share > CLIP_SHARE:
            counters["clip_told"] = 1
            self.tell(
                f"warning: clipping took more than half of the gradient in {share:.0%} of the last "
                f"{CLIP_WINDOW} steps (the last norm was {norm:.3g}): raise --clip-norm (now {limit:g}), "
                "or lower --lr"
            )

    def validation(self, bits: float, unigram: float) -> bool:
        """Look at a validation, in bits per sample; return whether it is the best so far."""
        counters = self.counters
        if self.warmed_up and bits > unigram:
            self.tell(
                "warning: the network is no better yet than counting classes; if this stays, lower --lr"
            )
        if not math.isfinite(bits):
            self.tell(f"warning: validation gave {bits}; if this stays, lower --lr")
        best = counters["best_bits"]
        if math.isfinite(bits) and (best is None or bits < best):
            counters["stale"] = counters["risen_told"] = 0
            return True
        counters["stale"] += 1
        risen = best is not None and bits > RISEN_BY * best
        if risen and counters["stale"] >= RISEN_AFTER and not counters["risen_told"]:
            counters["risen_told"] = 1
            self.tell(
                f"warning: validation has not fallen in {counters['stale']} validations, from {best:.3f} to "
                f"{bits:.3f}: the network learns the recordings by heart; the best, of step "
                f"{counters['best_step']}, is kept in best/ (more recordings, --dropout, --patience help)"
            )
        return False

    def new_best(self, bits: float) -> None:
        """Note that the network of this step is kept as the best."""
        self.counters["best_bits"], self.counters["best_step"] = bits, self.counters["step"]

    def ended(self) -> None:
        """Tell of the run's end if it came early."""
        counters = self.counters
        if self.patience_is_over:
            best = counters["best_bits"]
            kept = (
                "" if best is None else f"; the best, {best:.3f} of step {counters['best_step']}, is in best/"
            )
            self.tell(
                f"step {counters['step']}: no better validation in the last {counters['stale']}, so the run "
                f"ends here{kept} (it goes on with --resume --patience 0)"
            )

    def forget_best(self) -> None:
        """Choose the best anew, the data being other than before."""
        self.counters.update(best_bits=None, best_step=None, stale=0, risen_told=0)
