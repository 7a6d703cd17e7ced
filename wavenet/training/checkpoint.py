"""Checkpoints of a training run: their files, how they are written, and how the latest one is found.

A run directory contains `step-00001000/` and so on (a network with everything needed to continue), `best/`
(the network with the lowest validation score), `metrics.jsonl` and `samples/`. The network of a checkpoint
has the averaged weights; the raw weights and the optimiser's state are in `training_state.safetensors`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from wavenet.errors import CheckpointError, ConfigError
from wavenet.models.locate import BEST
from wavenet.models.registry import NetworkConfig
from wavenet.models.serialization import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    new_directory,
    read_json,
    read_network_config,
    read_tensors,
    recover,
    save_tensors,
    sync,
    write_json,
    write_network,
)
from wavenet.training.progress import TrainingRecord
from wavenet.utils.files import cause

STATE_FILE = "training_state.safetensors"
RECORD_FILE = "training.json"
SUMS_FILE = "SHA256SUMS"


@dataclass
class Checkpoint:
    """The state of a run after a step.

    Attributes
    ----------
    network : dict of tensors
        The averaged weights, for use.
    state : dict of tensors
        Raw weights, optimiser state and random state, under prefixed names.
    record : TrainingRecord
    """

    network: Mapping[str, torch.Tensor]
    state: Mapping[str, torch.Tensor]
    record: TrainingRecord


def step_name(step: int) -> str:
    """Return the directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def numbered(run: Path) -> list[Path]:
    """Return a run's numbered checkpoints, latest first."""
    if not run.is_dir():
        return []
    names = [path for path in run.iterdir() if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(names, key=lambda path: int(path.name[5:]), reverse=True)


def save(run: Path, config: NetworkConfig, checkpoint: Checkpoint) -> Path:
    """Write a numbered checkpoint; it gets its name only when it is complete."""
    target = run / step_name(checkpoint.record.progress.step)
    with new_directory(target) as directory:
        write_network(directory, config, checkpoint.network)
        save_tensors(directory / STATE_FILE, checkpoint.state)
        write_json(directory / RECORD_FILE, checkpoint.record.to_json())
        _write_sums(directory)
    return target


def _write_sums(directory: Path) -> None:
    """Write checksums in the format of `sha256sum --check`: the file formats do not detect damaged blocks."""
    sums = [f"{_sum(path)}  {path.name}\n" for path in sorted(directory.iterdir())]
    (directory / SUMS_FILE).write_text("".join(sums), encoding="utf-8")


def _check_sums(directory: Path) -> None:
    """Raise `CheckpointError` if a file differs from what was written."""
    path = directory / SUMS_FILE
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: {SUMS_FILE} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {cause(error)}") from None
    sums = dict(line.split("  ", 1)[::-1] for line in lines if "  " in line)
    for name in (CONFIG_FILE, WEIGHTS_FILE, STATE_FILE, RECORD_FILE):
        if sums.get(name) != _sum(directory / name):
            raise CheckpointError(f"{directory / name}: is damaged (wrong checksum)")


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_best(
    run: Path, config: NetworkConfig, network: Mapping[str, torch.Tensor], record: TrainingRecord
) -> None:
    """Replace the run's best network."""
    with new_directory(run / BEST) as directory:
        write_network(directory, config, network)
        write_json(directory / RECORD_FILE, record.to_json())


def prune(run: Path, keep: int) -> None:
    """Delete all but the latest `keep` numbered checkpoints, and the leftovers of interrupted writes."""
    for path in numbered(run)[keep:]:
        # Renamed first, because deleting takes time: a partial checkpoint must not keep its name.
        with contextlib.suppress(OSError):
            path = path.rename(path.with_name(f".{path.name}.pruned.tmp"))
        shutil.rmtree(path, ignore_errors=True)
    recover(run)
    for leftover in [*run.glob(".step-*.tmp"), *run.glob(".best.*.tmp")]:
        shutil.rmtree(leftover, ignore_errors=True)


def set_aside_beyond(run: Path, step: int) -> None:
    """Rename the damaged checkpoints of later steps, so that none of them counts as the latest."""
    for path in numbered(run):
        if int(path.name[5:]) > step:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Lock a run directory; raise `CheckpointError` if another process trains in it."""
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
                f"{run}: another training run is writing to it; wait for it, or choose another directory"
            ) from None
        except OSError:
            # Some network file systems do not support locks.
            pass
        yield


def load_latest(run: Path, warn: Callable[[str], None]) -> tuple[Path, Checkpoint]:
    """Read the latest complete checkpoint; `warn` gets a line for each damaged one that is skipped.

    Raises `CheckpointError` if there is none.
    """
    recover(run)
    for path in numbered(run):
        try:
            read_network_config(path)
            record = read_record(path)
            if record is None:
                raise CheckpointError(f"{path}: {RECORD_FILE} is missing")
            checkpoint = Checkpoint(
                network=read_tensors(path / WEIGHTS_FILE),
                state=read_tensors(path / STATE_FILE),
                record=record,
            )
            _check_sums(path)
            return path, checkpoint
        except CheckpointError as error:
            warn(f"{error}; trying the one before")
    raise CheckpointError(f"{run}: no checkpoint to resume from")


def read_record(directory: Path) -> TrainingRecord | None:
    """Return how the network in a directory was trained, None if the directory does not contain a record.

    Raises `CheckpointError` if the record is damaged.
    """
    path = directory / RECORD_FILE
    if not path.is_file():
        return None
    try:
        return TrainingRecord.from_json(read_json(path))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; use another checkpoint") from None
