"""Command lines: they parse, then call."""

import sys

INTERRUPTED = 130


def interrupted(command: str, code: int = INTERRUPTED) -> int:
    """Say in one line that a command was interrupted; return its exit code.

    Loads nothing, so that it serves while modules are still being loaded.
    """
    # Not print, which would write to standard output if there is no standard error.
    if sys.stderr is not None:
        try:
            sys.stderr.write(f"{command}: interrupted\n")
            sys.stderr.flush()
        except OSError:
            pass
    return code
