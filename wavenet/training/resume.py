"""Conversion of a trainer's state to the tensors of a checkpoint and back, exact to the bit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from wavenet.data.dataset import Dataset
from wavenet.models.serialization import WEIGHTS_FILE, check_tensors
from wavenet.training.checkpoint import STATE_FILE, Checkpoint

RANDOM = "random.torch"


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return raw weights, the optimiser's state and torch's random state, under prefixed names."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    state[RANDOM] = torch.get_rng_state()
    return state


def restore(
    path: Path,
    checkpoint: Checkpoint,
    model: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Load a checkpoint's tensors; raise `CheckpointError`, and change nothing, if one does not fit."""
    own = model.state_dict()
    keys = _optimizer_keys(checkpoint.state)
    expected = {f"model.{name}": tensor for name, tensor in own.items()}
    expected.update(_optimizer_tensors(model, keys))
    check_tensors(path / STATE_FILE, checkpoint.state, {**expected, RANDOM: torch.get_rng_state()})
    check_tensors(path / WEIGHTS_FILE, checkpoint.network, own)
    model.load_state_dict({name: checkpoint.state[f"model.{name}"] for name in own})
    averaged.load_state_dict(dict(checkpoint.network))
    for name, parameter in model.named_parameters() if keys else ():
        # Optimisers count steps on the CPU, unless they are one kernel on a GPU.
        counting = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
        optimizer.state[parameter] = {
            key: checkpoint.state[f"optimizer.{key}.{name}"]
            .clone()
            .to(counting if key == "step" else parameter.device)
            for key in keys
        }
    torch.set_rng_state(checkpoint.state[RANDOM])


def _optimizer_keys(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of an optimiser's tensors per parameter ("exp_avg"); none before the first step."""
    return sorted({name.split(".")[1] for name in state if re.match(r"optimizer\.\w+\.", name)})


def _optimizer_tensors(model: nn.Module, keys: list[str]) -> dict[str, torch.Tensor]:
    """Return tensors like those that a checkpoint must contain: step counts, and others like parameters."""
    expected = {}
    for name, parameter in model.named_parameters():
        for key in keys:
            expected[f"optimizer.{key}.{name}"] = torch.zeros(()) if key == "step" else parameter.detach()
    return expected


def fingerprint(data: Dataset) -> str:
    """Return a name for the data: the clips' lengths and a histogram of their samples, wherever they are."""
    digest = hashlib.sha256()
    for part in (data.train, data.validation):
        digest.update(repr([clip.length for clip in part.clips]).encode())
        digest.update(part.histogram().tobytes())
    return digest.hexdigest()[:16]
