"""Optimisers: a factory takes the network and the training configuration and returns the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wavenet.config import TrainingConfig

OptimizerFactory = Callable[[nn.Module, TrainingConfig], torch.optim.Optimizer]
"""The trainer sets the learning rate of all groups before every step."""


def adamw(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only."""
    groups = parameter_groups(model, training.weight_decay)
    # Fused: on a GPU one kernel updates all parameters.
    return torch.optim.AdamW(groups, lr=training.lr, betas=(0.9, 0.99), fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return an optimiser's groups of parameters: weights of products decay, biases and embeddings do not."""
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and "embedding" not in n]
    plain = [p for n, p in model.named_parameters() if p.dim() == 1 or "embedding" in n]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
