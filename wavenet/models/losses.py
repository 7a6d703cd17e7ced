"""Cross-entropy losses."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from wavenet.data.batch import IGNORED
from wavenet.models import native_layers


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, reduction: Literal["mean", "sum", "none"] = "mean"
) -> torch.Tensor:
    """Return the cross-entropy in nats over the targets that are not `IGNORED`.

    Parameters
    ----------
    logits : float tensor (batch, quantization_channels, time)
    targets : int64 tensor (batch, time)
    reduction : str
        "mean", "sum", or "none" for a tensor like `targets`, 0 where they are `IGNORED`.
    """
    rows, wanted = logits.transpose(1, 2).reshape(targets.numel(), -1), targets.reshape(-1)
    if native_layers.can_score(rows):
        nats = native_layers.cross_entropies(rows, wanted, IGNORED)
    else:
        nats = F.cross_entropy(rows.float(), wanted, ignore_index=IGNORED, reduction="none")
    if reduction == "none":
        return nats.reshape(targets.shape)
    return nats.sum() / (wanted != IGNORED).sum() if reduction == "mean" else nats.sum()


def smoothed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the sum, in nats, of cross-entropies against softened targets (Szegedy et al. 2016, section 7).

    Parameters
    ----------
    logits : float tensor (batch, quantization_channels, time)
    targets : int64 tensor (batch, time)
        Those that are `IGNORED` do not count.
    smoothing : float
        Probability that is spread over all classes evenly; the target keeps the rest.
    """
    rows = logits.transpose(1, 2).reshape(targets.numel(), -1).float()
    return F.cross_entropy(
        rows, targets.reshape(-1), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )
