"""What the commands share: arguments, and errors as one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from wavenet import __version__
from wavenet.errors import WaveNetError

USER_ERROR = 1
INTERRUPTED = 130
OUT_OF_MEMORY = "out of memory: lower --batch, --segment or --seconds, or choose a smaller network"


class _Version(argparse.Action):
    """Prints the version and what `const`, a function, has to add; it is called only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print("\n".join([f"{parser.prog} {__version__}", *(self.const() if self.const else [])]))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser in the house's manner: no abbreviations, defaults in the help.

    Parameters
    ----------
    details : function that returns lines, optional
        What --version says after the version.
    """

    def __init__(self, details: Callable[[], list[str]] | None = None, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.add_argument(
            "--version", action=_Version, nargs=0, const=details, help="show the version and exit"
        )
        self.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an error")


def one_line(error: BaseException) -> str:
    """Return an exception's message as one printable line."""
    if isinstance(error, OSError) and error.errno is not None:
        text = (error.strerror or str(error)) + (f": {os.fsdecode(error.filename)}" if error.filename else "")
        if error.errno == errno.ENOSPC:
            text += "; free some space, or write elsewhere"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())


def run(parser: argparse.ArgumentParser, work: Callable[[Any], int], arguments: Sequence[str] | None) -> int:
    """Parse, work, and turn what goes wrong into one line and an exit code.

    Returns
    -------
    int
        The exit code: what `work` returns, 1 for an error, 130 for an interrupt. (Usage errors exit with 2.)
    """
    options = parser.parse_args(arguments)
    try:
        return work(options)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (WaveNetError, OSError, RuntimeError, MemoryError) as error:
        message = one_line(error)
        if isinstance(error, (RuntimeError, MemoryError)):
            if not _out_of_memory(error):
                raise
            message = OUT_OF_MEMORY
        if options.verbose:
            traceback.print_exc()
    print(f"{parser.prog}: error: {message}", file=sys.stderr)
    return USER_ERROR


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text
