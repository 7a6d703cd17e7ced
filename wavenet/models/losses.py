"""Cross-entropy losses: pure functions of logits and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F

from wavenet.data.batch import IGNORED

PerTarget = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes float logits (rows, classes) and int64 targets (rows,); returns the cross-entropy of each target in
nats, float32 (rows,), 0 where the target is `IGNORED`."""


def reference_per_target(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each target with torch's operator; see `PerTarget`."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    reduction: Literal["mean", "sum", "none"] = "mean",
    per_target: PerTarget = reference_per_target,
) -> torch.Tensor:
    """Return the cross-entropy in nats over the targets that are not `IGNORED`.

    Parameters
    ----------
    logits : float tensor (batch, quantization_channels, time)
    targets : int64 tensor (batch, time)
    reduction : str
        "mean", "sum", or "none" for a tensor like `targets`, 0 where they are `IGNORED`.
    per_target : callable
        Computes the single cross-entropies; `native_layers.cross_entropy_per_target` is the fast one.
    """
    nats = per_target(logits.transpose(1, 2).reshape(targets.numel(), -1), targets.reshape(-1))
    if reduction == "none":
        return nats.reshape(targets.shape)
    return nats.sum() / (targets != IGNORED).sum() if reduction == "mean" else nats.sum()


def smoothed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the sum, in nats, of cross-entropies against smoothed targets (Szegedy et al. 2016, section 7).

    Parameters
    ----------
    logits : float tensor (batch, quantization_channels, time)
    targets : int64 tensor (batch, time)
        Those that are `IGNORED` do not count.
    smoothing : float
        Probability that is spread evenly over all classes; the target keeps the rest.
    """
    rows = logits.transpose(1, 2).reshape(targets.numel(), -1).float()
    return F.cross_entropy(
        rows, targets.reshape(-1), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )
