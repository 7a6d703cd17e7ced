"""Writing WAV files: whole ones, and ones that grow while audio is generated."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

import numpy as np

from wavenet.errors import AudioError
from wavenet.utils.files import atomic_output


class WavWriter:
    """16-bit mono PCM, written to a binary stream as it is made.

    Parameters
    ----------
    stream : binary file
        Written in order; a pipe will do.
    sample_rate : int
        In Hz.
    frames : int, optional
        Number of samples that will follow. Without it the header says "unknown" (0xFFFFFFFF), at which
        players start at once; if `stream` is a file, `finish` writes the true sizes over it.
    header : bool
        False writes the samples alone.
    rewind : bool
        False never goes back in `stream`: a standard output that looks like a file may be one opened for
        appending, where the second header would land at the end.

    Raises
    ------
    AudioError
        If a WAV of that length would pass 4 GiB.
    """

    _LIMIT = 0xFFFFFFFF - 36

    def __init__(
        self,
        stream: BinaryIO,
        sample_rate: int,
        frames: int | None = None,
        header: bool = True,
        rewind: bool = True,
    ) -> None:
        self.stream = stream
        self.sample_rate = sample_rate
        self.frames = frames
        self.header = header
        self.rewind = rewind
        self.written = 0
        self._seekable = header and rewind and stream.seekable()
        self._start = stream.tell() if self._seekable else 0
        if header:
            self._check_size(frames or 0)
            stream.write(self._header(frames))

    def _check_size(self, frames: int) -> None:
        if 2 * frames > self._LIMIT:
            hours = frames / self.sample_rate / 3600
            raise AudioError(
                f"{hours:.1f} hours do not fit a WAV file (4 GiB): use --format raw or fewer seconds"
            )

    def _header(self, frames: int | None) -> bytes:
        data = 0xFFFFFFFF if frames is None else 2 * frames
        riff = 0xFFFFFFFF if frames is None else 36 + 2 * frames
        rate = self.sample_rate
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
        return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + form + struct.pack("<4sI", b"data", data)

    def write(self, audio: np.ndarray) -> None:
        """Append float samples (samples,); full scale is 1, and what lies beyond it is clipped."""
        # A pipe has no length to exceed; a file's header must be able to tell it.
        if self._seekable:
            self._check_size(self.written + len(audio))
        scaled = np.rint(np.clip(np.asarray(audio, dtype=np.float64), -1, 1) * 32767)
        self.stream.write(scaled.astype("<i2").tobytes())
        self.written += len(audio)

    def finish(self) -> None:
        """Make the header of a file agree with what was written; a pipe is left as it is."""
        if self._seekable and self.written != self.frames:
            end = self._start + len(self._header(None)) + 2 * self.written
            # What an interrupt in the midst of writing left over is not accounted for.
            if self.stream.tell() > end:
                self.stream.seek(end)
                self.stream.truncate()
            self.stream.seek(self._start)
            self.stream.write(self._header(self.written))
            self.stream.seek(end)
        self.stream.flush()


def write_wav(path: str | os.PathLike[str], audio: np.ndarray, sample_rate: int) -> None:
    """Write float audio (samples,) as a 16-bit mono WAV file that appears whole or not at all.

    Raises
    ------
    AudioError
        If the folder is missing or not writable, the disk is full, or the audio does not fit a WAV file.
    """
    with atomic_output(path) as stream:
        writer = WavWriter(stream, sample_rate, len(audio))
        writer.write(audio)
        writer.finish()
