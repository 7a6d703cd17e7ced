"""`metrics.jsonl`: the records of a run, one JSON object per line, each with its step."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wavenet.config import TrainingConfig
from wavenet.training.progress import TrainingProgress
from wavenet.training.schedules import learning_rate
from wavenet.utils.console import duration
from wavenet.utils.files import cause

METRICS_FILE = "metrics.jsonl"

TIMED = ("samples_per_second", "waiting")
"""Keys of a record whose values differ between two runs of the same steps."""


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file in order, without the lines that are not valid records."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


class Metrics:
    """Writes the records of a run.

    Parameters
    ----------
    run : Path
        Directory of the run.
    warn : callable
        Gets a line when a record cannot be written; such a failure does not end a run.
    """

    def __init__(self, run: Path, warn: Callable[[str], None]):
        self.path = run / METRICS_FILE
        self.warn = warn

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; if the disk is full, no part of it remains in the file."""
        try:
            with open(self.path, "ab", buffering=0) as file:
                end = os.fstat(file.fileno()).st_size
                line = (json.dumps(record) + "\n").encode()
                try:
                    if file.write(line) != len(line):
                        raise OSError("no space for a whole line")
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            self.warn(f"warning: {self.path}: {cause(error)}")

    def trim(self, step: int) -> None:
        """Drop incomplete lines and records beyond a step, which a killed run wrote after its checkpoint."""
        if not self.path.exists():
            return
        try:
            kept = [json.dumps(record) + "\n" for record in read(self.path) if record["step"] <= step]
            _replace(self.path, "".join(kept))
        except OSError as error:
            self.warn(f"warning: {self.path}: {cause(error)}")

    def write_beside(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON object to a file in the directory of the run."""
        path = self.path.with_name(name)
        try:
            _replace(path, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            self.warn(f"warning: {path}: {cause(error)}")

    def contains(self, step: int, key: str) -> bool:
        """Return whether a record of a step has a key."""
        try:
            return any(record["step"] == step and key in record for record in read(self.path))
        except OSError:
            return False

    def sync(self) -> None:
        """Flush the records to the disk, as far as the system supports it."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            os.fsync(file.fileno())


def _replace(path: Path, text: str) -> None:
    """Write a file that gets its name only when it is complete and on disk."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def is_due(step: int, every: int, last: int) -> bool:
    """Return whether something done every `every` steps (0: never) and at the last step is due."""
    return every > 0 and (step % every == 0 or step == last)


def training_record(
    progress: TrainingProgress, training: TrainingConfig, norm: float, rate: float, waiting: float
) -> dict[str, Any]:
    """Return the record of the steps since the last one, and start the next window.

    Parameters
    ----------
    progress : TrainingProgress
        Its window is reset.
    training : TrainingConfig
    norm : float
        Norm of the last gradient.
    rate : float
        Targets per second.
    waiting : float
        Share of the time in which the device waited for segments.
    """
    steps = progress.window_steps
    progress.train_bits = progress.window_bits / steps if steps else None
    progress.window_bits, progress.window_steps = 0.0, 0
    return {
        "step": progress.step,
        "train_bits": progress.train_bits,
        "gradient_norm": norm if math.isfinite(norm) else None,
        "lr": learning_rate(training, progress.step - 1),
        "skipped": progress.skipped,
        "samples_per_second": round(rate),
        "waiting": round(waiting, 4),
    }


def status_line(
    progress: TrainingProgress, training: TrainingConfig, rate: float, samples_per_step: int
) -> str:
    """Return the state of a run in one line, with the time left at `rate` targets per second."""
    parts = [f"step {progress.step}/{training.steps}"]
    if progress.train_bits is not None:
        parts.append(f"train {progress.train_bits:.3f} bits")
    if progress.validation_bits is not None:
        parts.append(f"validation {progress.validation_bits:.3f}")
    if progress.skipped:
        parts.append(f"{progress.skipped} non-finite steps skipped")
    parts.append(f"{rate:,.0f} samples/s")
    left = (training.steps - progress.step) * samples_per_step
    parts.append(f"{duration(left / max(rate, 1e-9))} left")
    return "  ".join(parts)


def final_line(bits: float, unigram: float) -> str:
    """Return the line about a finished network's bits per sample, compared with the unigram entropy."""
    side = "below" if bits <= unigram else "above"
    return (
        f"final: validation {bits:.3f} bits per sample, {abs(unigram - bits):.2f} {side} the unigram "
        f"entropy of {unigram:.2f}"
    )
