"""Files on disk: names that print safely, output that is complete or absent, and the cache folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

from wavenet.errors import AudioError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def one_line(text: str) -> str:
    """Return a text as one printable line: control characters and bytes that are not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # os.fsdecode represents bytes that are not UTF-8 by these surrogates.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def printable(path: str | bytes | os.PathLike[str]) -> str:
    """Return a path as one line that any terminal can print."""
    return one_line(os.fsdecode(path))


def free_name(path: Path, word: str) -> Path:
    """Return an unused path next to `path`: for out.wav the first of out-word.wav, out-word-1.wav, ..."""
    names = (f"{path.stem}-{word}{f'-{number}' if number else ''}{path.suffix}" for number in count())
    return next(each for name in names if not os.path.lexists(each := path.with_name(name)))


def user_cache() -> Path:
    """Return the folder for files that can be rebuilt; Linux: $XDG_CACHE_HOME/wavenet or ~/.cache/wavenet."""
    from platformdirs import user_cache_path  # It takes 20 ms, and most commands need no cache.

    return user_cache_path("wavenet", appauthor=False)


def cause(error: OSError) -> str:
    """Return the operating system's reason in lower case, for use inside a sentence."""
    return (error.strerror or str(error) or type(error).__name__).lower()


@contextmanager
def atomic_output(
    path: str | os.PathLike[str], rename: Callable[[], str | os.PathLike[str]] | None = None
) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at `path` only when the block ends without an exception.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed to
    `path`. On any failure it is removed, and an existing file at `path` stays. A device or pipe at `path` is
    written directly.

    Parameters
    ----------
    path : path
    rename : callable, optional
        Called at the end; returns the path to use instead of `path`, in the same folder.

    Raises
    ------
    AudioError
        If the folder is missing or not writable, `path` is a folder, or the disk is full.
    """
    import secrets  # It loads a cryptographic library, which --help does not need.

    shown = printable(path)
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".wavenet-{secrets.token_hex(8)}.tmp")
    try:
        mode = _mode(target)
        if stat.S_ISDIR(mode):
            raise AudioError(f"cannot write {shown}: it is a folder; give the name of a file")
        special = mode != 0 and not stat.S_ISREG(mode)
        stream = open(target, "wb") if special else open(temporary, "xb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise AudioError(f"cannot write {shown}: its folder does not exist; create it first") from None
    except OSError as error:
        raise AudioError(f"cannot write {shown}: {cause(error)}; choose another path") from None
    try:
        with stream:
            yield stream
            stream.flush()
            if not special:
                os.fsync(stream.fileno())
        if not special:
            os.replace(temporary, target if rename is None else os.path.realpath(rename()))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise AudioError(
            f"cannot write {shown}: {cause(error)}; free some space or choose another path"
        ) from None
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _mode(path: str) -> int:
    """Return the mode of the file at a path, 0 if there is none."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return 0
