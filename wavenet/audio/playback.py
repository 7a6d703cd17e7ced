"""Playing while it is made: a bounded buffer between the generator and a sound device that never waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from wavenet.errors import AudioError, ConfigError

BUFFER_SECONDS = 10.0
"""The most audio between the generator and the device."""

LEAD_SECONDS = 0.3
"""Audio in the buffer before the device starts, where the machine keeps up."""

TRIAL_SECONDS = 0.5
"""Wall clock that a trial of the speed takes, about."""

HEADROOM = 1.1
"""Times real time from which a machine is said to keep up."""

PATIENCE = 5.0
"""Seconds without the device asking for anything, after which it is taken for gone."""

Pull = Callable[[int], np.ndarray]
"""Returns so many samples, float32 (samples,), at once."""


class Sink(Protocol):
    """A sound device: it asks for audio when it needs it, from a thread of its own."""

    def start(self, pull: Pull) -> None:
        """Begin to ask."""
        ...

    def stop(self) -> None:
        """Ask no more; what was taken may still be sounding."""
        ...

    @property
    def latency(self) -> float:
        """Seconds from asking to sounding."""
        ...


class Device:
    """The default sound device, through PortAudio (extra `[play]`).

    Raises
    ------
    ConfigError
        If sounddevice or the PortAudio library is not installed.
    AudioError
        If there is no device, or it does not take the rate.
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
                f"--play: no sound device can be opened ({reason}); connect one, or write to a file"
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
        raise ConfigError("--play: sounddevice is not installed: pip install 'wavenet[play]'") from None
    except OSError as error:
        raise ConfigError(
            f"--play: {error}; install it (apt install libportaudio2, brew install portaudio)"
        ) from None
    return sounddevice


class Player:
    """Plays audio on a sink while more of it is being made.

    Parameters
    ----------
    sink : Sink
    sample_rate : int
        In Hz.
    lead : float
        Seconds of audio to wait for before the sink starts; it starts sooner if there will be no more.
    capacity : float
        The most seconds of audio to hold: `write` waits while there are more.
    clock : function
        Seconds, for the time without a sign of the sink.

    Attributes
    ----------
    underruns : int
        Times that the sink asked for audio that was not there yet: gaps that are heard.
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
        self._held = 0
        self._starved = self._ended = self._started = self._stopped = False
        self._asked = 0.0
        self._changed = threading.Condition()

    def write(self, audio: np.ndarray) -> None:
        """Add samples, float (samples,), waiting while the buffer is full.

        Raises `AudioError` if the device asks for nothing any more.
        """
        audio = np.clip(np.asarray(audio, dtype=np.float32), -1, 1)
        while len(audio):
            with self._changed:
                room = min(self._capacity - self._held, len(audio))
                if room > 0:
                    self._parts.append(audio[:room])
                    self._held += room
                    audio = audio[room:]
                ready = self._held >= self._lead
            if ready:
                self._start()
            if len(audio):
                self._wait()

    def finish(self) -> None:
        """Wait until everything has been played, and stop."""
        with self._changed:
            self._ended = True
        self._start()
        while self._held:
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
            self._started, self._asked = True, self._clock()
            self.sink.start(self.pull)

    def _wait(self) -> None:
        # In short turns: where threads wait, a signal may not be heard.
        with self._changed:
            self._changed.wait(0.1)
        if self._started and self._clock() - self._asked > PATIENCE:
            raise AudioError("--play: the sound device asks for no more audio; connect it again")

    def pull(self, count: int) -> np.ndarray:
        """Return the next samples, and silence where there are none; called by the sink."""
        found = np.zeros(count, dtype=np.float32)
        filled = 0
        with self._changed:
            self._asked = self._clock()
            while filled < count and self._parts:
                part = self._parts.popleft()
                some = min(len(part), count - filled)
                found[filled : filled + some] = part[:some]
                if some < len(part):
                    self._parts.appendleft(part[some:])
                filled += some
            self._held -= filled
            short = count - filled
            if short and not self._ended:
                # A gap is one underrun, however often the device asks in vain.
                self.underruns += not self._starved
                self.missing += short
            self._starved = bool(short)
            self._changed.notify_all()
        return found


def speed(make: Callable[[], int], sample_rate: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how many times faster than it plays audio is made, by a short trial.

    Parameters
    ----------
    make : callable
        Makes some samples and returns how many.
    sample_rate : int
        In Hz.
    clock : callable
        Seconds.
    """
    make()  # The first time something may be loaded or compiled.
    begun, samples = clock(), 0
    while (elapsed := clock() - begun) < TRIAL_SECONDS or not samples:
        samples += make()
    return samples / sample_rate / max(elapsed, 1e-9)


def lead_for(times: float, seconds: float | None) -> float:
    """Return the seconds of audio to wait for, so that a take plays without gaps if it can.

    Parameters
    ----------
    times : float
        Speed, as `speed` returns it.
    seconds : float or None
        Length of the take; None for ever, which no waiting helps.
    """
    if times >= HEADROOM or seconds is None:
        return LEAD_SECONDS
    return min(BUFFER_SECONDS, LEAD_SECONDS + seconds * (1 - times / HEADROOM))
