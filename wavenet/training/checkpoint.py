"""What a training run leaves on disk, and how it is found again.

A run directory holds `step-00001000/` and so on (a network with everything needed to go on), `best/` (the
network with the lowest validation bits), `metrics.jsonl` and `samples/`. The network in a checkpoint is the
one with averaged weights; the raw weights stand with the optimiser in `training_state.safetensors`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wavenet.config import TrainingConfig, WaveNetConfig
from wavenet.errors import CheckpointError, ConfigError
from wavenet.models import locate
from wavenet.models.locate import BEST
from wavenet.models.serialization import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    new_directory,
    read_config,
    read_json,
    read_tensors,
    recover,
    save_tensors,
    sync,
    write_json,
    write_network,
)
from wavenet.training import checkpoint
from wavenet.utils.files import cause

STATE_FILE = "training_state.safetensors"
PROGRESS_FILE = "training.json"
SUMS_FILE = "SHA256SUMS"


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
        _write_sums(directory)
    return target


def _write_sums(directory: Path) -> None:
    """Write what `sha256sum --check` reads: a disk may lose the middle of a file, and no format notices."""
    sums = [f"{_sum(path)}  {path.name}\n" for path in sorted(directory.iterdir())]
    (directory / SUMS_FILE).write_text("".join(sums), encoding="utf-8")


def _check_sums(directory: Path) -> None:
    """Raise `CheckpointError` if a file is not what was written; checkpoints of old have no sums."""
    try:
        lines = (directory / SUMS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{directory / SUMS_FILE}: cannot be read: {cause(error)}") from None
    sums = dict(line.split("  ", 1)[::-1] for line in lines if "  " in line)
    for name in (CONFIG_FILE, WEIGHTS_FILE, STATE_FILE, PROGRESS_FILE):
        if sums.get(name) != _sum(directory / name):
            raise CheckpointError(f"{directory / name}: is damaged (its checksum is another)")


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        # Renamed first: deleting takes a while, and no half of a checkpoint may stand under its name.
        with contextlib.suppress(OSError):
            path = path.rename(path.with_name(f".{path.name}.pruned.tmp"))
        shutil.rmtree(path, ignore_errors=True)
    recover(run)
    for leftover in [*run.glob(".step-*.tmp"), *run.glob(".best.*.tmp")]:
        shutil.rmtree(leftover, ignore_errors=True)


def set_aside_beyond(run: Path, step: int) -> None:
    """Rename the checkpoints of later steps, which could not be read, lest one be taken for the latest."""
    for path in numbered(run):
        if int(path.name[5:]) > step:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold a run directory; `CheckpointError` if another process trains into it."""
    run.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        sync(run.parent)
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    with open(run / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{run}: another wavenet-train is writing to it; wait for it, or choose another --out-dir"
            ) from None
        except OSError:
            # Some network file systems have no locks.
            pass
        yield


def load_latest(run: Path, warn: Callable[[str], None]) -> tuple[Path, Checkpoint]:
    """Read the latest checkpoint that is whole, telling of those passed over.

    Raises `CheckpointError` if there is none.
    """
    recover(run)
    for path in numbered(run):
        try:
            read_config(path)
            moment = Checkpoint(
                network=read_tensors(path / WEIGHTS_FILE),
                state=read_tensors(path / STATE_FILE),
                progress=_progress(path),
            )
            _check_sums(path)
            return path, moment
        except CheckpointError as error:
            warn(f"{error}; trying the one before")
    raise CheckpointError(f"{run}: no checkpoint to resume from; leave out --resume to start a run there")


def _progress(path: Path) -> dict[str, Any]:
    progress = read_json(path / PROGRESS_FILE)
    if not isinstance(progress, dict) or not isinstance(progress.get("step"), int):
        raise CheckpointError(f"{path / PROGRESS_FILE}: is damaged (no step); use another checkpoint")
    return progress


def history(directory: Path) -> tuple[TrainingConfig, dict[str, Any]] | None:
    """Return how the network in a checkpoint was trained and what else was noted; None if nothing says so.

    Raises `CheckpointError` if the notes are damaged.
    """
    places = [directory]
    if directory.name == locate.BEST:
        # Of a run's best network only the step is noted there.
        places += checkpoint.numbered(directory.parent)[:1]
    for place in places:
        file = place / checkpoint.PROGRESS_FILE
        if not file.is_file():
            continue
        notes = read_json(file)
        if isinstance(notes, dict) and "training" in notes:
            try:
                return TrainingConfig.from_json(notes["training"]), notes
            except ConfigError as error:
                raise CheckpointError(f"{file}: {error}; use another checkpoint") from None
    return None
