"""Finds checkpoints: by path, in a training run, or the one shipped with the package."""

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
"""Where training writes by default, and where a checkpoint is looked for when none is named."""


SHIPPED = Path(__file__).parents[1] / "pretrained" / "piano"
"""A network that comes with the package: a piano that plays scores. Its README.md tells of it."""


def find(path: Path) -> Path:
    """Return the checkpoint meant by a path: the directory itself, or the newest in a run directory.

    "piano", where there is nothing of that name, is `SHIPPED`.

    Raises `CheckpointError` if the path does not exist or holds none.
    """
    if str(path) == SHIPPED.name and not path.exists():
        return SHIPPED
    if not path.is_dir():
        kind = "is not a folder" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {kind}; train a network first, or name one with --checkpoint DIR")
    recover(path)
    if (path / CONFIG_FILE).is_file():
        return path
    found = [each.parent for depth in ("*", "*/*") for each in path.glob(f"{depth}/{CONFIG_FILE}")]
    whole = [each for each in found if (each / WEIGHTS_FILE).is_file() and not each.name.startswith(".")]
    if not whole:
        raise CheckpointError(f"{path}: holds no checkpoint; train a network first with wavenet-train")
    # Copying and unpacking change times: within a run the step decides, and only between runs the time. A
    # run's best network repeats an earlier step, so it counts only where no other is.
    runs: dict[Path, list[Path]] = {}
    for each in whole:
        runs.setdefault(each.parent, []).append(each)
    latest = [max(group, key=lambda each: (_step_of(each), _written(each))) for group in runs.values()]
    return max(latest, key=_written)


def display_name(directory: Path) -> str:
    """Return a checkpoint's name for a line of text: its path, or "piano"."""
    return SHIPPED.name if directory == SHIPPED else printable(directory)


def default_checkpoint() -> Path:
    """Return the newest checkpoint under `RUN`, or `SHIPPED` where there is none.

    Raises `CheckpointError` if `RUN` is something else than a folder.
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
