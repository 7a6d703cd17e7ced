"""Pictures in files: matplotlib where it is installed, and its errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wavenet.errors import ConfigError
from wavenet.utils.files import atomic_output, printable


def figure(flag: str, path: Path, size: tuple[float, float]) -> Any:
    """Return an empty figure, of which `picture` makes a file.

    Parameters
    ----------
    flag : str
        What asked for it, for messages.
    path : Path
        Its name decides the format: png, pdf or svg.
    size : (float, float)
        Width and height in inches, of 100 pixels.

    Raises
    ------
    ConfigError
        If matplotlib is not installed, or does not write the format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot: matplotlib is not installed: pip install 'wavenet[plot]'") from None
    found = Figure(figsize=size, layout="constrained")
    if path.suffix[1:].lower() not in found.canvas.get_supported_filetypes():
        raise ConfigError(f"{flag} {printable(path)}: must end in .png, .pdf or .svg")
    return found


@contextmanager
def picture(flag: str, path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """Lend an empty figure, and write it to a file that appears whole or not at all.

    Parameters and errors are those of `figure`; and `AudioError` if the file cannot be written.
    """
    found = figure(flag, path, size)
    yield found
    with atomic_output(path) as stream:
        found.savefig(stream, format=path.suffix[1:].lower())
