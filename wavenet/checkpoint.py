"""What a training run leaves on disk, and how it is found again.

A run directory holds `step-00001000/` and so on (a network with everything needed to go on), `best/` (the
network with the lowest validation bits), `metrics.jsonl` and `samples/`. The network in a checkpoint is the
one with averaged weights; the raw weights stand with the optimiser in `training_state.safetensors`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wavenet.config import WaveNetConfig
from wavenet.errors import CheckpointError
from wavenet.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    new_directory,
    read_json,
    read_tensors,
    save_tensors,
    write_json,
    write_network,
)

STATE_FILE = "training_state.safetensors"
PROGRESS_FILE = "training.json"
BEST = "best"


@dataclass
class Checkpoint:
    """One moment of a run.

    Attributes
    ----------
    network : dict of tensors
        The averaged weights, for use.
    state : dict of tensors
        Raw weights, optimiser moments and random state, under prefixed names.
    progress : dict
        JSON values: step, counters, configuration.
    """

    network: Mapping[str, torch.Tensor]
    state: Mapping[str, torch.Tensor]
    progress: dict[str, Any]


def step_name(step: int) -> str:
    """Return the directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def numbered(run: Path) -> list[Path]:
    """Return a run's numbered checkpoints, latest first."""
    if not run.is_dir():
        return []
    names = [path for path in run.iterdir() if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(names, key=lambda path: int(path.name[5:]), reverse=True)


def save(run: Path, config: WaveNetConfig, checkpoint: Checkpoint) -> Path:
    """Write a numbered checkpoint; it appears under its name only once it is whole."""
    target = run / step_name(checkpoint.progress["step"])
    with new_directory(target) as directory:
        write_network(directory, config, checkpoint.network)
        save_tensors(directory / STATE_FILE, checkpoint.state)
        write_json(directory / PROGRESS_FILE, checkpoint.progress)
    return target


def save_best(
    run: Path, config: WaveNetConfig, network: Mapping[str, torch.Tensor], progress: dict[str, Any]
) -> None:
    """Replace the run's best network."""
    with new_directory(run / BEST) as directory:
        write_network(directory, config, network)
        write_json(directory / PROGRESS_FILE, progress)


def prune(run: Path, keep: int) -> None:
    """Delete all but the latest `keep` numbered checkpoints, and what interrupted writes have left."""
    for path in numbered(run)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    for leftover in [*run.glob(".step-*.tmp"), *run.glob(".best.*.tmp"), *run.glob(".*.old")]:
        shutil.rmtree(leftover, ignore_errors=True)


def load_latest(run: Path, warn: Callable[[str], None]) -> tuple[Path, Checkpoint]:
    """Read the latest checkpoint that is whole, telling of those passed over.

    Raises `CheckpointError` if there is none.
    """
    for path in numbered(run):
        try:
            return path, Checkpoint(
                network=read_tensors(path / WEIGHTS_FILE),
                state=read_tensors(path / STATE_FILE),
                progress=_progress(path),
            )
        except CheckpointError as error:
            warn(f"{error}; trying the one before")
    raise CheckpointError(f"{run}: no checkpoint to resume from; leave out --resume to start a run there")


def _progress(path: Path) -> dict[str, Any]:
    progress = read_json(path / PROGRESS_FILE)
    if not isinstance(progress, dict) or not isinstance(progress.get("step"), int):
        raise CheckpointError(f"{path / PROGRESS_FILE}: is damaged (no step); use another checkpoint")
    return progress


def find(path: Path) -> Path:
    """Return the checkpoint meant by a path: the directory itself, or the newest in a run directory.

    Raises `CheckpointError` if the path does not exist or holds none.
    """
    if not path.is_dir():
        kind = "is not a folder" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {kind}; train a network first, or name one with --checkpoint DIR")
    if (path / CONFIG_FILE).is_file():
        return path
    found = [each.parent for depth in ("*", "*/*") for each in path.glob(f"{depth}/{CONFIG_FILE}")]
    whole = [each for each in found if (each / WEIGHTS_FILE).is_file() and not each.name.startswith(".")]
    if not whole:
        raise CheckpointError(f"{path}: holds no checkpoint; train a network first with wavenet-train")
    # A run's best network repeats an earlier step: it counts only where nothing else is.
    return max(whole, key=lambda each: (each.name != BEST, (each / WEIGHTS_FILE).stat().st_mtime_ns))
