"""A process that has loaded torch and forks runs of the commands, which saves the time of loading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import IO

from support.commands import environment


class ForkServer:
    """Runs a Python script that reads a line of JSON for each request and answers in lines of numbers.

    Parameters
    ----------
    script : str
    home : Path
        The working folder.
    errors : binary file, optional
        Receives standard error.
    """

    def __init__(self, script: str, home: Path, errors: IO[bytes] | None = None):
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=home, env=environment(), text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip

    def request(self, message: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def answer(self) -> list[int]:
        """Wait for the next line of numbers."""
        assert self.process.stdout is not None
        return [int(number) for number in self.process.stdout.readline().split()]

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
