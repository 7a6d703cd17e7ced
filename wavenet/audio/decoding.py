"""Reading recordings: decode in blocks, mix to mono, resample, check levels."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from wavenet.audio.decoder_stderr import muted_stderr
from wavenet.audio.levels import Levels, Signal, gain, measure
from wavenet.audio.truncation import ends_early
from wavenet.errors import AudioError
from wavenet.utils.files import cause, printable

RATES = (100, 1_000_000)
MAX_CHANNELS = 256
# Integer samples stored as floating point reach 2^31; larger numbers are not audio at any scale.
_MAX_AMPLITUDE = 2.0**32
# A third of one 16-bit step.
_SILENT_RANGE = 1e-5
# Share of samples beyond full scale without normalisation: fewer are clipped, more are a mistake.
_MAX_OVER = 0.01
# Small, because a block in which the decoder finds damage is lost completely.
_BLOCK_FRAMES = 8192
_MAX_RESAMPLED = 1 << 20
_LARGEST_HEADER = 1 << 12
_CUT_SHORT = "cut short (it ends before its header says)"


class UnusableAudio(AudioError):
    """A recording that cannot be used.

    Attributes
    ----------
    reason : str
        Why, without the file's name.
    temporary : bool
        Whether the cause is not in the file's bytes, so that the same file may be usable later.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        reason: str,
        remedy: str = "give another recording",
        temporary: bool = False,
    ) -> None:
        self.reason = reason
        self.temporary = temporary
        super().__init__(f"{printable(path)}: {reason}; {remedy}")


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise AudioError(
            f"recordings cannot be read without soundfile ({error}): pip install soundfile"
        ) from None
    return soundfile


def resampler() -> Any:
    """Return the soxr module, which resamples; `AudioError` if it is not installed."""
    try:
        import soxr
    except (ImportError, OSError) as error:
        raise AudioError(f"recordings cannot be resampled without soxr ({error}): pip install soxr") from None
    return soxr


def _open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading; never blocks on pipes or devices."""
    try:
        # Check before opening, because opening a device can have side effects.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnusableAudio(path, "not a regular file", "give a file with a recording", temporary=True)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise UnusableAudio(path, "does not exist", "check the path", temporary=True) from None
    except (OSError, ValueError) as error:
        why = cause(error) if isinstance(error, OSError) else str(error)
        raise UnusableAudio(
            path, f"cannot be read ({why})", "check its permissions", temporary=True
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnusableAudio(path, "not a regular file", "give a file with a recording", temporary=True)
    return descriptor


class Decoder:
    """A recording as blocks of mono float32 at a given sample rate.

    Memory is a few blocks of at most a million samples, whatever the header claims. The attributes are
    complete once `blocks` has ended.

    Attributes
    ----------
    source_rate, channels : int
        Sample rate in Hz and number of channels, from the header.
    format : str
        libsndfile's name of the container.
    frames, claimed : int
        Frames decoded, and frames according to the header (0 if it does not contain them).
    peak : float
        Largest absolute amplitude of any channel, before mixing.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int) -> None:
        self.path = path
        self.sample_rate = sample_rate
        self.source_rate = self.channels = self.frames = self.claimed = 0
        self.format = ""
        self.peak = 0.0

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 arrays (samples,), mono at `sample_rate`.

        A recording of n frames gives ceil(n * sample_rate / source_rate) samples.

        Raises
        ------
        UnusableAudio
            If the file is not audio, is damaged or truncated, or contains NaN, infinite or huge values. Some
            of these are found only at the end, after blocks have been yielded.
        """
        descriptor = _open_regular(self.path)
        try:
            size = os.fstat(descriptor).st_size
            if size == 0:
                raise UnusableAudio(self.path, "empty file (0 bytes)")
            with self._open(descriptor) as sound:
                yield from self._resampled(self._decoded(sound, descriptor, size))
        finally:
            os.close(descriptor)

    def _open(self, descriptor: int) -> Any:
        soundfile = _soundfile()

        class Forward(soundfile.SoundFile):
            # soundfile seeks after every read of a seekable file, and seeking restarts lossy decoders.
            def seekable(self) -> bool:
                return False

        # On Windows a descriptor belongs to one C runtime, and libsndfile may use another.
        source = os.fspath(self.path) if os.name == "nt" else descriptor
        try:
            with muted_stderr():
                sound = Forward(source, closefd=False)
        except soundfile.LibsndfileError as error:
            why = error.error_string.strip().rstrip(".").lower()
            raise UnusableAudio(self.path, f"not audio that can be read ({why})") from None
        except (TypeError, ValueError):
            raise UnusableAudio(self.path, "not audio that can be read (headerless data)") from None
        self.source_rate, self.channels, self.format = sound.samplerate, sound.channels, sound.format
        self.claimed = sound.frames if 0 < sound.frames < 1 << 62 else 0
        try:
            if not RATES[0] <= self.source_rate <= RATES[1]:
                raise UnusableAudio(
                    self.path, f"a sample rate of {self.source_rate} Hz (usable: 100 Hz to 1 MHz)"
                )
            if not 1 <= self.channels <= MAX_CHANNELS:
                raise UnusableAudio(self.path, f"{self.channels} channels (usable: 1 to {MAX_CHANNELS})")
        except UnusableAudio:
            sound.close()
            raise
        return sound

    def _decoded(self, sound: Any, descriptor: int, size: int) -> Iterator[np.ndarray]:
        soundfile = _soundfile()
        buffer = np.empty((_BLOCK_FRAMES, self.channels), dtype=np.float32)
        while True:
            # Never read past the last frame: a FLAC decoder reports a trailing tag as damage.
            wanted = min(_BLOCK_FRAMES, self.claimed - self.frames) if self.claimed else _BLOCK_FRAMES
            try:
                with muted_stderr():
                    block = sound.read(out=buffer[:wanted]) if wanted else buffer[:0]
            except (soundfile.LibsndfileError, RuntimeError) as error:
                # A decoder that has read the file to its end lacks data; otherwise the data is damaged.
                if self.frames and os.name != "nt" and os.lseek(descriptor, 0, os.SEEK_CUR) >= size:
                    raise self._cut_short() from None
                why = str(getattr(error, "error_string", error)).removeprefix("Error :").strip().rstrip(".")
                raise UnusableAudio(self.path, f"damaged: {why.lower()}") from None
            if not len(block):
                break
            self.frames += len(block)
            yield self._mono(block)
        self._check_length(sound, descriptor, size)

    def _mono(self, block: np.ndarray) -> np.ndarray:
        peak = max(float(block.max()), -float(block.min()))
        if not np.isfinite(peak):
            raise UnusableAudio(self.path, "contains NaN or infinite samples")
        if peak > _MAX_AMPLITUDE:
            raise UnusableAudio(self.path, f"samples as large as {peak:.3g}, where full scale is 1")
        self.peak = max(self.peak, peak)
        if self.channels == 1:
            return block[:, 0].copy()
        return block.mean(axis=1, dtype=np.float64).astype(np.float32)

    def _cut_short(self) -> UnusableAudio:
        return UnusableAudio(self.path, _CUT_SHORT, "get a whole copy of it")

    def _check_length(self, sound: Any, descriptor: int, size: int) -> None:
        if ends_early(descriptor, size, sound.format, sound.extra_info, self.claimed, self.frames):
            raise self._cut_short()
        if not self.frames:
            unsure = " according to its header, which the recorder may not have completed"
            raise UnusableAudio(self.path, "no samples in it" + (unsure if size > _LARGEST_HEADER else ""))

    def _resampled(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        first = next(blocks)
        if self.source_rate == self.sample_rate:
            yield first
            yield from blocks
            return
        stream = resampler().ResampleStream(
            self.source_rate, self.sample_rate, 1, dtype="float32", quality="HQ"
        )
        piece = max(1, min(_BLOCK_FRAMES, _MAX_RESAMPLED * self.source_rate // self.sample_rate))
        made = 0
        for block in chain([first], blocks):
            for start in range(0, len(block), piece):
                out = stream.resample_chunk(block[start : start + piece])
                made += len(out)
                yield out
        tail = stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        wanted = -(-self.frames * self.sample_rate // self.source_rate) - made
        yield np.pad(tail[: max(0, wanted)], (0, max(0, wanted - len(tail))))


def check_levels(signal: Signal, decoder: Decoder, normalization: str) -> tuple[Levels, float]:
    """Measure a decoded signal; return its levels and the gain of the normalisation.

    Raises `UnusableAudio` if it is empty or silent, or if without normalisation much of it exceeds
    full scale.
    """
    if not len(signal):
        raise UnusableAudio(decoder.path, "no samples in it")
    levels = measure(signal, decoder.sample_rate, clip=normalization == "none")
    if normalization == "none" and levels.over > _MAX_OVER * len(signal):
        raise UnusableAudio(
            decoder.path,
            f"{levels.over / len(signal):.0%} of its samples exceed full scale (peak {decoder.peak:.3g})",
            'normalise it, or use normalization "peak"',
        )
    if levels.high == levels.low or (levels.high - levels.low < _SILENT_RANGE and normalization == "none"):
        reason = "silent once mixed to mono" if decoder.peak > 1e-3 else "silent"
        raise UnusableAudio(decoder.path, reason, "give a recording with sound in it")
    return levels, gain(levels, normalization)


def load_audio(path: str | os.PathLike[str], sample_rate: int, normalization: str = "none") -> np.ndarray:
    """Load one recording as training does, but in float32 and with its silences.

    Parameters
    ----------
    path : path
        Anything libsndfile reads.
    sample_rate : int
        Rate of the result, in Hz.
    normalization : str
        "none", "peak" or "loudness", as in `AudioFormat`.

    Returns
    -------
    float32 array (samples,), mono, clipped to [-1, 1].

    Raises
    ------
    AudioError
        If the file is missing, not audio, damaged, empty or silent.
    """
    decoder = Decoder(path, sample_rate)
    parts = list(decoder.blocks())
    signal = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
    _, factor = check_levels(signal, decoder, normalization)
    return np.clip(signal * np.float32(factor), -1, 1)
