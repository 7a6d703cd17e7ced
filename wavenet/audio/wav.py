"""Writing WAV files, complete or while audio is generated."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

import numpy as np

from wavenet.errors import AudioError
from wavenet.utils.files import atomic_output


class WavWriter:
    """Writes 16-bit mono PCM to a binary stream block by block.

    Parameters
    ----------
    stream : binary file
        Written in order, so it may be a pipe.
    sample_rate : int
        In Hz.
    frames : int, optional
        Number of samples that will follow. Without it the header says "unknown" (0xFFFFFFFF), which players
        accept; if `stream` is a file, `finish` replaces it by the true sizes.
    header : bool
        False writes the samples only.
    rewind : bool
        False never seeks in `stream`: standard output may be a file opened for appending, where a second
        header would be written at the end.

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
                f"{hours:.1f} hours do not fit a WAV file (4 GiB): write raw samples, or fewer seconds"
            )

    def _header(self, frames: int | None) -> bytes:
        data = 0xFFFFFFFF if frames is None else 2 * frames
        riff = 0xFFFFFFFF if frames is None else 36 + 2 * frames
        rate = self.sample_rate
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
        return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + form + struct.pack("<4sI", b"data", data)

    def write(self, audio: np.ndarray) -> None:
        """Append float samples (samples,); full scale is 1, and larger amplitudes are clipped."""
        # A pipe may be endless; the size of a file must fit into its header.
        if self._seekable:
            self._check_size(self.written + len(audio))
        scaled = np.rint(np.clip(np.asarray(audio, dtype=np.float64), -1, 1) * 32767)
        self.stream.write(scaled.astype("<i2").tobytes())
        self.written += len(audio)

    def finish(self) -> None:
        """Correct the sizes in the header of a file; a pipe stays as it is."""
        if self._seekable and self.written != self.frames:
            end = self._start + len(self._header(None)) + 2 * self.written
            # An interrupted write may have left bytes that `written` does not count.
            if self.stream.tell() > end:
                self.stream.seek(end)
                self.stream.truncate()
            self.stream.seek(self._start)
            self.stream.write(self._header(self.written))
            self.stream.seek(end)
        self.stream.flush()


def write_wav(path: str | os.PathLike[str], audio: np.ndarray, sample_rate: int) -> None:
    """Write float audio (samples,) as a 16-bit mono WAV file that is complete or absent.

    Raises
    ------
    AudioError
        If the folder is missing or not writable, the disk is full, or the audio does not fit a WAV file.
    """
    with atomic_output(path) as stream:
        writer = WavWriter(stream, sample_rate, len(audio))
        writer.write(audio)
        writer.finish()
