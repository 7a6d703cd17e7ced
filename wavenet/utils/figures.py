"""Figures in files: matplotlib, imported when it is used, with its errors in one line; spectrograms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavenet.errors import ConfigError
from wavenet.utils.files import atomic_output, printable

if TYPE_CHECKING:
    import numpy as np

RANGE_DB = 80.0
"""Range of a spectrogram below its loudest point, in dB."""


def new_figure(path: Path, size: tuple[float, float]) -> Any:
    """Return an empty matplotlib figure for a file.

    Parameters
    ----------
    path : Path
        Its extension selects the format: png, pdf or svg.
    size : (float, float)
        Width and height in inches, of 100 pixels.

    Raises
    ------
    ConfigError
        If matplotlib is not installed, or does not support the format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("matplotlib is not installed: pip install 'wavenet[plot]'") from None
    figure = Figure(figsize=size, layout="constrained")
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"{printable(path)}: must end in .png, .pdf or .svg")
    return figure


@contextmanager
def saved_figure(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """Yield an empty figure, and write it to a file when the block ends; no partial file is ever visible.

    Parameters and errors are those of `new_figure`; and `AudioError` if the file cannot be written.
    """
    figure = new_figure(path, size)
    yield figure
    with atomic_output(path) as stream:
        figure.savefig(stream, format=path.suffix[1:].lower())


def spectrogram(audio: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Return the levels of a short-time Fourier transform with a Hann window, in dB.

    Parameters
    ----------
    audio : float array (samples,)
        Shorter audio is padded to `n_fft` samples with zeros.
    n_fft, hop : int
        Samples in a window, and from one frame to the next.

    Returns
    -------
    float32 array (n_fft // 2 + 1, frames)
        From -`RANGE_DB` to 0, the loudest point.
    """
    import librosa
    import numpy as np

    padded = np.pad(audio.astype(np.float32), (0, max(0, n_fft - len(audio))))
    magnitude = np.abs(librosa.stft(padded, n_fft=n_fft, hop_length=hop, center=False))
    return librosa.amplitude_to_db(magnitude, ref=np.max, amin=1e-9, top_db=RANGE_DB)
