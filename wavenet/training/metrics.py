"""`metrics.jsonl`: the account of a run, one JSON object per line, each with the step it was written at."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
