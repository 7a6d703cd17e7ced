"""`metrics.jsonl`: the account of a run, one JSON object per line, each with the step it was written at."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wavenet.config import TrainingConfig
from wavenet.training.schedules import learning_rate
from wavenet.utils.console import duration
from wavenet.utils.files import cause

METRICS_FILE = "metrics.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of an account, in order; lines that are none are passed over."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                found.append(record)
    return found


class Metrics:
    """The account of the run in a directory, as it is written.

    Parameters
    ----------
    run : Path
    warn : callable
        Told when the account cannot be written; no failure of it ends a run.
    """

    def __init__(self, run: Path, warn: Callable[[str], None]):
        self.path = run / METRICS_FILE
        self.warn = warn

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; a line that does not fit the disk leaves no part of itself."""
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
        """Drop torn lines and those beyond a step: what a kill after the last checkpoint has left."""
        if not self.path.exists():
            return
        try:
            kept = [json.dumps(record) + "\n" for record in read(self.path) if record["step"] <= step]
            _replace(self.path, "".join(kept))
        except OSError as error:
            self.warn(f"warning: {self.path}: {cause(error)}")

    def beside(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON object into a file beside the account."""
        path = self.path.with_name(name)
        try:
            _replace(path, json.dumps(values, indent=2) + "\n")
        except OSError as error:
            self.warn(f"warning: {path}: {cause(error)}")

    def holds(self, step: int, key: str) -> bool:
        """Whether a record of a step has a key."""
        try:
            return any(record["step"] == step and key in record for record in read(self.path))
        except OSError:
            return False

    def sync(self) -> None:
        """Bring what was added to the disk, as far as the system can."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            os.fsync(file.fileno())


def _replace(path: Path, text: str) -> None:
    """Write a file that takes its name only once it is whole and on disk."""
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


def due(step: int, every: int, last: int) -> bool:
    """Whether something that is done every so many steps (0: never), and at the last one, is to be done."""
    return every > 0 and (step % every == 0 or step == last)


TIMED = ("samples_per_second", "waiting")
"""Keys of a record that differ from one run of the same steps to the next."""


def window(
    counters: dict[str, Any], training: TrainingConfig, norm: float, rate: float, waiting: float
) -> dict[str, Any]:
    """Return the record of the steps since the last one, and begin the next window.

    Parameters
    ----------
    counters : dict
        Of the run; those of the window are emptied.
    training : TrainingConfig
    norm : float
        Of the last gradient.
    rate : float
        Targets per second.
    waiting : float
        Share of the time in which the device waited for segments.
    """
    steps = counters["window_steps"]
    record = {
        "step": counters["step"],
        "train_bits": counters["window_bits"] / steps if steps else None,
        "gradient_norm": norm if math.isfinite(norm) else None,
        "lr": learning_rate(training, counters["step"] - 1),
        "skipped": counters["skipped"],
        "samples_per_second": round(rate),
        "waiting": round(waiting, 4),
    }
    counters["train_bits"] = record["train_bits"]
    counters["window_bits"], counters["window_steps"] = 0.0, 0
    return record


def status(counters: dict[str, Any], training: TrainingConfig, rate: float, samples_per_step: int) -> str:
    """Return where a run stands, and how long it will take at `rate` targets per second."""
    parts = [f"step {counters['step']}/{training.steps}"]
    if counters["train_bits"] is not None:
        parts.append(f"train {counters['train_bits']:.3f} bits")
    if counters["validation_bits"] is not None:
        parts.append(f"validation {counters['validation_bits']:.3f}")
    if counters["skipped"]:
        parts.append(f"{counters['skipped']} non-finite steps skipped")
    parts.append(f"{rate:,.0f} samples/s")
    left = (training.steps - counters["step"]) * samples_per_step
    parts.append(f"{duration(left / max(rate, 1e-9))} left")
    return "  ".join(parts)


def final(bits: float, unigram: float) -> str:
    """Return what is said of a finished network's bits per sample, beside the entropy of single samples."""
    side = "below" if bits <= unigram else "above"
    return (
        f"final: validation {bits:.3f} bits per sample, {abs(unigram - bits):.2f} {side} the unigram "
        f"entropy of {unigram:.2f}"
    )
