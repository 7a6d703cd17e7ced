"""Bits per sample: how well a network predicts audio, on the scale of an ideal compressor."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from wavenet.clips import IGNORED
from wavenet.model import WaveNet


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which matrix products run in the given precision, "fp32" or "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "bf16" for "auto" where the device multiplies bfloat16 natively, "fp32" elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # The operator exists only where torch was built with oneDNN.
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
    return "fp32"


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the cross-entropy in nats over the targets that are not `IGNORED`.

    Parameters
    ----------
    logits : float tensor (batch, quantization_channels, time)
    targets : int64 tensor (batch, time)
    reduction : str
        "mean" or "sum".
    """
    rows = logits.transpose(1, 2).reshape(targets.numel(), -1).float()
    return F.cross_entropy(rows, targets.reshape(-1), ignore_index=IGNORED, reduction=reduction)


@torch.no_grad()
def bits_per_sample(
    model: WaveNet,
    windows: Iterable[tuple[torch.Tensor, torch.Tensor]],
    device: torch.device | None = None,
    precision: str = "fp32",
) -> float:
    """Return the mean negative log2-likelihood per sample; NaN if there is nothing to score.

    Parameters
    ----------
    model : WaveNet
    windows : pairs of int64 tensors (batch, receptive_field - 1 + time) and (batch, time)
        Inputs and targets, as `wavenet.dataset.Clips.windows` yields them.
    device : torch.device, optional
        Where the model is; by default the CPU.
    precision : str
        "fp32" or "bf16".
    """
    device = device or torch.device("cpu")
    nats, count = 0.0, 0
    for inputs, targets in windows:
        with autocast(device, precision):
            logits = model(inputs.to(device))
        nats += float(cross_entropy(logits, targets.to(device), "sum"))
        count += int((targets != IGNORED).sum())
    return nats / count / math.log(2) if count else math.nan
