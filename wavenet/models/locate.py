"""Finds checkpoints: by path, in a training run, or the one that comes with the package."""

from __future__ import annotations

import re
from pathlib import Path

from wavenet.errors import CheckpointError
from wavenet.models.serialization import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    recover,
)
from wavenet.utils.files import printable

BEST = "best"


RUN = Path("checkpoints")
"""Folder where training writes by default, and where `default_checkpoint` searches."""


SHIPPED = Path(__file__).parents[1] / "pretrained" / "piano"
"""A network that comes with the package: a piano that plays scores; see its README.md."""


def find(path: Path) -> Path:
    """Return the checkpoint that a path names: the folder itself, or the newest one in a run's folder.

    "piano" is `SHIPPED`, unless there is a file or folder of that name.

    Raises `CheckpointError` if the path does not exist or contains no checkpoint.
    """
    if str(path) == SHIPPED.name and not path.exists():
        return SHIPPED
    if not path.is_dir():
        kind = "is not a folder" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {kind}; train a network first, or name another folder")
    recover(path)
    if (path / CONFIG_FILE).is_file():
        return path
    found = [each.parent for depth in ("*", "*/*") for each in path.glob(f"{depth}/{CONFIG_FILE}")]
    whole = [each for each in found if (each / WEIGHTS_FILE).is_file() and not each.name.startswith(".")]
    if not whole:
        raise CheckpointError(f"{path}: contains no checkpoint; train a network first with wavenet-train")
    # Copying and unpacking change times, so that the step decides within a run, and the time only between
    # runs. A run's best network repeats an earlier step; it is chosen only if there is no other.
    runs: dict[Path, list[Path]] = {}
    for each in whole:
        runs.setdefault(each.parent, []).append(each)
    latest = [max(group, key=lambda each: (_step_of(each), _written(each))) for group in runs.values()]
    return max(latest, key=_written)


def display_name(directory: Path) -> str:
    """Return a checkpoint's name for messages: its path, or "piano"."""
    return SHIPPED.name if directory == SHIPPED else printable(directory)


def default_checkpoint() -> Path:
    """Return the newest checkpoint under `RUN`, or `SHIPPED` if there is none.

    Raises `CheckpointError` if `RUN` is not a folder.
    """
    recover(RUN)
    if not RUN.exists() or (RUN.is_dir() and not any(RUN.rglob(CONFIG_FILE))):
        return SHIPPED
    return find(RUN)


def _step_of(path: Path) -> int:
    if path.name == BEST:
        return -1
    return int(path.name[5:]) if re.fullmatch(r"step-\d{8,}", path.name) else 0


def _written(path: Path) -> int:
    return (path / WEIGHTS_FILE).stat().st_mtime_ns
