"""What the commands share: arguments, and errors as one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from wavenet import __version__
from wavenet.cli import INTERRUPTED as INTERRUPTED
from wavenet.cli import interrupted
from wavenet.cli.signals import signal_handler
from wavenet.errors import ConfigError, WaveNetError
from wavenet.utils.console import Console
from wavenet.utils.distributed import process_prefix
from wavenet.utils.files import cause, one_line, printable
from wavenet.utils.memory import out_of_memory

USER_ERROR = 1
OUT_OF_MEMORY = "out of memory: lower --batch, --segment or --seconds, or choose a smaller network"

ARGUMENTS = {"patterns": "exclude", "class": "classes"}
"""Arguments of the library that have another name in the parsed options."""


class _Version(argparse.Action):
    """Prints the version and what `const`, a function, has to add; it is called only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        lines = [f"{parser.prog} {__version__}", *(self.const() if self.const else [])]
        parser._print_message("".join(f"{one_line(line)}\n" for line in lines), sys.stdout)
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

    def error(self, message: str) -> Any:
        """Exit with a usage error; the message may quote what was typed."""
        # Without a standard error the usage would go to standard output, into the audio.
        if sys.stderr is None:
            self.exit(2)
        super().error(one_line(message))

    def flag(self, argument: str) -> str:
        """Return the flag that sets an argument, or the argument's name if no flag sets it."""
        name = ARGUMENTS.get(argument, argument)
        flags = (
            action.option_strings[-1]
            for action in self._actions
            if action.dest == name and action.option_strings
        )
        return next(flags, argument)

    def _print_message(self, message: str, file: Any = None) -> None:
        # A standard stream that was closed is None, which older versions of argparse write to.
        with contextlib.suppress(AttributeError):
            super()._print_message(message, file)


def describe(error: BaseException, parser: Parser | None = None) -> str:
    """Return an exception's message as one printable line, with the flag of the argument that it names."""
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename
        text = (f"{printable(name)}: " if isinstance(name, (str, bytes)) and name else "") + cause(error)
        if error.errno == errno.ENOSPC:
            text += "; free some space, or write elsewhere"
    else:
        text = str(error) or type(error).__name__
        argument = getattr(error, "argument", None)
        if argument is not None:
            text = f"{argument if parser is None else parser.flag(argument)}: {text}"
    return one_line(" ".join(text.split()))


def run(
    parser: Parser,
    work: Callable[[Any], int],
    arguments: Sequence[str] | None,
    signals: tuple[str, ...] = ("SIGINT",),
) -> int:
    """Parse, work, and turn what goes wrong into one line and an exit code.

    Parameters
    ----------
    parser : Parser
    work : callable
        Takes the parsed options and returns the exit code.
    arguments : sequence of str, optional
        By default the command line's.
    signals : tuple of str
        Names of the signals that interrupt the work, as Ctrl-C does.

    Returns
    -------
    int
        The exit code: what `work` returns, 1 for an error, 128 plus the signal's number for an interrupt
        (Ctrl-C: 130). Usage errors exit with 2.
    """
    _fill_standard_descriptors()
    with signal_handler.raising(signals):
        options = parser.parse_args(arguments)
        try:
            return work(options)
        except KeyboardInterrupt:
            return interrupted(parser.prog, signal_handler.exit_code())
        except Exception as error:
            if signal_handler.received is not None:
                return interrupted(parser.prog, signal_handler.exit_code())
            if out_of_memory(error):
                message = OUT_OF_MEMORY
            elif isinstance(error, (WaveNetError, OSError)):
                message = describe(error, parser)
            else:
                raise
            if options.verbose:
                import traceback

                Console().line(traceback.format_exc().rstrip())
    Console().line(f"{parser.prog}: error: {process_prefix()}{message}")
    return USER_ERROR


def add_recordings(group: Any, validation: str, excluded: str) -> None:
    """Add the flags that say which recordings are meant.

    Parameters
    ----------
    group : argparse.ArgumentParser or a group of its
    validation, excluded : str
        What --val-dir and --exclude are by default, for the help.
    """
    group.add_argument(
        "--audio-dir",
        type=Path,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="folders of recordings, searched in depth",
    )
    group.add_argument(
        "--val-dir", type=Path, metavar="DIR", help=f"recordings for validation (default: {validation})"
    )
    group.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        metavar="GLOB",
        help="leave out recordings by their path in the folder, as 'drafts/*' or '*.mp3' "
        f"(default: {excluded})",
    )


def device_named(name: str) -> Any:
    """Return the torch device of a --device flag; "auto" is the GPU where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: is not a device; use auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: is not supported; use auto, cpu or cuda")
    return device


def _fill_standard_descriptors() -> None:
    """Point closed standard descriptors nowhere, lest a file takes their number and gets what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, which is this one.
            os.open(os.devnull, os.O_RDWR)
