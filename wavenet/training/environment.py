"""Environment variables to set before torch is imported."""

from __future__ import annotations

import os

WISHES = {
    # Pages of 2 MB for large blocks, where Linux has them: what a step takes anew costs a fault a page.
    "THP_MEM_ALLOC_ENABLE": "1",
    # A thread that waits for the others sleeps. If it spun, it would take their time where other programs
    # run.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Values of variables; what they gain stands in benchmarks/RESULTS.md."""


def prepare() -> None:
    """Set what the user has not set. To be called before torch is loaded."""
    for name, value in WISHES.items():
        os.environ.setdefault(name, value)
