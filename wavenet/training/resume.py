"""From a trainer's insides to a checkpoint and back, to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wavenet.data.dataset import Dataset
from wavenet.errors import CheckpointError
from wavenet.models.serialization import WEIGHTS_FILE, check_tensors
from wavenet.models.wavenet import WaveNet
from wavenet.training.checkpoint import STATE_FILE, Checkpoint

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""

RANDOM = "random.torch"

COUNTERS: dict[str, Any] = {
    "step": 0,
    "skipped": 0,
    "skipped_in_a_row": 0,
    "best_bits": None,
    "best_step": None,
    "train_bits": None,
    "validation_bits": None,
    "window_bits": 0.0,
    "window_steps": 0,
}
"""What a run counts, as it is before the first step."""


def state_of(model: WaveNet, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return raw weights, the optimiser's moments and torch's random state, under prefixed names."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    state[RANDOM] = torch.get_rng_state()
    return state


def restore(
    path: Path,
    moment: Checkpoint,
    model: WaveNet,
    averaged: WaveNet,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put a checkpoint's tensors back; `CheckpointError`, and nothing changed, if one does not fit."""
    own = model.state_dict()
    moments = _expected_moments(model, moment.state)
    expected = {f"model.{name}": tensor for name, tensor in own.items()}
    check_tensors(path / STATE_FILE, moment.state, {**expected, **moments, RANDOM: torch.get_rng_state()})
    check_tensors(path / WEIGHTS_FILE, moment.network, own)
    model.load_state_dict({name: moment.state[f"model.{name}"] for name in own})
    averaged.load_state_dict(dict(moment.network))
    for name, parameter in model.named_parameters():
        if moments:
            state = {key: moment.state[f"optimizer.{key}.{name}"].clone() for key in MOMENTS}
            # Adam counts its steps on the CPU, unless it is one kernel of a GPU.
            steps = parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
            optimizer.state[parameter] = {
                key: value.to(steps if key == "step" else parameter.device) for key, value in state.items()
            }
    torch.set_rng_state(moment.state[RANDOM])


def _expected_moments(model: WaveNet, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the optimiser's tensors as they ought to be: none before the first step."""
    if not any(name.startswith("optimizer.") for name in state):
        return {}
    expected = {}
    for name, parameter in model.named_parameters():
        for key in MOMENTS:
            expected[f"optimizer.{key}.{name}"] = torch.zeros(()) if key == "step" else parameter.detach()
    return expected


def counters_of(file: Path, progress: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counters in a checkpoint's progress; `CheckpointError` if one is missing or no count.

    Those that are None in `like` may be None; those that are whole numbers there must be so.
    """
    counters = {}
    for key, value in like.items():
        found = progress.get(key, file)
        if not (found is None and value is None):
            kinds = int if isinstance(value, int) else (int, float)
            if not isinstance(found, kinds) or isinstance(found, bool) or not 0 <= found < 2**53:
                raise CheckpointError(f"{file}: is damaged ({key} = {progress.get(key)!r})")
        counters[key] = found
    return counters


def fingerprint(data: Dataset) -> str:
    """Return a name for the data: which clips there are and what samples they hold, wherever they lie."""
    digest = hashlib.sha256()
    for part in (data.train, data.validation):
        digest.update(repr([clip.length for clip in part.clips]).encode())
        digest.update(part.histogram().tobytes())
    return digest.hexdigest()[:16]
