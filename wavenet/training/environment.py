"""Environment variables to set before torch is imported."""

from __future__ import annotations

import os

VARIABLES = {
    # Pages of 2 MB for large blocks, where Linux supports them: each new page of a step costs a page fault.
    "THP_MEM_ALLOC_ENABLE": "1",
    # A thread that waits for the others sleeps. A spinning thread would take their time if other programs
    # run.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Names and values; benchmarks/RESULTS.md has the measured gain."""


def prepare() -> None:
    """Set the variables that the user has not set; call it before torch is imported."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
