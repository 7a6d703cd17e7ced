"""Playback during generation: a bounded buffer between the generator and a sound device."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from wavenet.errors import AudioError, ConfigError

BUFFER_SECONDS = 10.0
"""Largest length of the buffer."""

LEAD_SECONDS = 0.3
"""Audio in the buffer before the device starts, if generation is fast enough."""

TRIAL_SECONDS = 0.5
"""Approximate duration of a speed measurement."""

HEADROOM = 1.1
"""Real-time factor from which generation is fast enough for live playback."""

DEVICE_TIMEOUT = 5.0
"""Seconds without a request after which the device counts as disconnected."""

Pull = Callable[[int], np.ndarray]
"""Returns the given number of samples, float32 (samples,), without blocking."""


class Sink(Protocol):
    """A sound device; it requests audio from its own thread."""

    def start(self, pull: Pull) -> None:
        """Begin to request audio."""
        ...

    def stop(self) -> None:
        """Request no more; audio that was already requested may still play."""
        ...

    @property
    def latency(self) -> float:
        """Seconds from a request to its sound."""
        ...


class Device:
    """The default sound device, through PortAudio (extra `[play]`).

    Raises
    ------
    ConfigError
        If sounddevice or the PortAudio library is not installed.
    AudioError
        If there is no device, or it does not support the rate.
    """

    def __init__(self, sample_rate: int | None = None):
        self._library = _portaudio()
        try:
            self._library.query_devices(kind="output")
            self._stream = None
            if sample_rate is not None:
                self._stream = self._library.OutputStream(
                    samplerate=sample_rate, channels=1, dtype="float32", callback=self._fill
                )
        except (self._library.PortAudioError, ValueError) as error:
            reason = " ".join(str(error).split()) or "none found"
            raise AudioError(
                f"no sound device can be opened ({reason}); connect one, or write to a file",
                argument="play",
            ) from None

    def _fill(self, out: np.ndarray, frames: int, *_: Any) -> None:
        out[:, 0] = self._pull(frames)

    def start(self, pull: Pull) -> None:
        """See `Sink`."""
        assert self._stream is not None
        self._pull = pull
        self._stream.start()

    def stop(self) -> None:
        """See `Sink`."""
        assert self._stream is not None
        self._stream.abort()
        self._stream.close()

    @property
    def latency(self) -> float:
        """See `Sink`."""
        return float(self._stream.latency) if self._stream is not None else 0.0


def _portaudio() -> Any:
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "sounddevice is not installed: pip install 'wavenet[play]'", argument="play"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{error}; install it (apt install libportaudio2, brew install portaudio)", argument="play"
        ) from None
    return sounddevice


class Player:
    """Plays audio on a sink while more is generated.

    Parameters
    ----------
    sink : Sink
    sample_rate : int
        In Hz.
    lead : float
        Seconds of audio in the buffer before the sink starts; a shorter take starts when it is complete.
    capacity : float
        Length of the buffer in seconds; `write` blocks while it is full.
    clock : function
        Returns seconds; measures the time since the last request of the sink.

    Attributes
    ----------
    underruns : int
        Times that the sink requested audio before it was generated: audible gaps.
    missing : int
        Samples of silence in these gaps.
    """

    def __init__(
        self,
        sink: Sink,
        sample_rate: int,
        lead: float = LEAD_SECONDS,
        capacity: float = BUFFER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.sink = sink
        self.sample_rate = sample_rate
        self.underruns = 0
        self.missing = 0
        self._capacity = max(1, round(capacity * sample_rate))
        self._lead = min(self._capacity, round(lead * sample_rate))
        self._clock = clock
        self._parts: deque[np.ndarray] = deque()
        self._buffered = 0
        self._starved = self._ended = self._started = self._stopped = False
        self._requested = 0.0
        self._changed = threading.Condition()

    def write(self, audio: np.ndarray) -> None:
        """Add samples, float (samples,); blocks while the buffer is full.

        Raises `AudioError` if the device stops requesting audio.
        """
        audio = np.clip(np.asarray(audio, dtype=np.float32), -1, 1)
        while len(audio):
            with self._changed:
                room = min(self._capacity - self._buffered, len(audio))
                if room > 0:
                    self._parts.append(audio[:room])
                    self._buffered += room
                    audio = audio[room:]
                ready = self._buffered >= self._lead
            if ready:
                self._start()
            if len(audio):
                self._wait()

    def finish(self) -> None:
        """Wait until everything has been played, and stop."""
        with self._changed:
            self._ended = True
        self._start()
        while self._buffered:
            self._wait()
        time.sleep(max(0.0, self.sink.latency))
        self.stop()

    def stop(self) -> None:
        """Stop at once."""
        if not self._stopped:
            self._stopped = True
            if self._started:
                self.sink.stop()

    def _start(self) -> None:
        if not self._started:
            self._started, self._requested = True, self._clock()
            self.sink.start(self.pull)

    def _wait(self) -> None:
        # Short waits, because a waiting thread may not handle signals.
        with self._changed:
            self._changed.wait(0.1)
        if self._started and self._clock() - self._requested > DEVICE_TIMEOUT:
            raise AudioError("the sound device stopped requesting audio; reconnect it", argument="play")

    def pull(self, count: int) -> np.ndarray:
        """Return the next samples, or silence if there are none; called by the sink."""
        found = np.zeros(count, dtype=np.float32)
        filled = 0
        with self._changed:
            self._requested = self._clock()
            while filled < count and self._parts:
                part = self._parts.popleft()
                some = min(len(part), count - filled)
                found[filled : filled + some] = part[:some]
                if some < len(part):
                    self._parts.appendleft(part[some:])
                filled += some
            self._buffered -= filled
            short = count - filled
            if short and not self._ended:
                # A gap counts as one underrun, however many requests it spans.
                self.underruns += not self._starved
                self.missing += short
            self._starved = bool(short)
            self._changed.notify_all()
        return found


def real_time_factor(
    generate: Callable[[], int], sample_rate: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return seconds of audio generated per second, from a short measurement.

    Parameters
    ----------
    generate : callable
        Generates some samples and returns how many.
    sample_rate : int
        In Hz.
    clock : callable
        Returns seconds.
    """
    generate()  # The first call may load or compile something.
    begun, samples = clock(), 0
    while (elapsed := clock() - begun) < TRIAL_SECONDS or not samples:
        samples += generate()
    return samples / sample_rate / max(elapsed, 1e-9)


def lead_for(factor: float, seconds: float | None) -> float:
    """Return the seconds of audio to buffer first, so that a take plays without gaps if possible.

    Parameters
    ----------
    factor : float
        Real-time factor of the generation.
    seconds : float or None
        Length of the take; None for an endless one, which no buffer can help.
    """
    if factor >= HEADROOM or seconds is None:
        return LEAD_SECONDS
    return min(BUFFER_SECONDS, LEAD_SECONDS + seconds * (1 - factor / HEADROOM))
