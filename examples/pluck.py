"""An extended Karplus-Strong string: a delay loop with a plucked excitation, damping and exact tuning.

Sources: Karplus and Strong, "Digital Synthesis of Plucked-String and Drum Timbres" (1983); Jaffe and Smith,
"Extensions of the Karplus-Strong Plucked-String Algorithm" (1983).
"""

from __future__ import annotations

import math
import random

import numpy as np

# Lagrange interpolation of order 5 is most accurate, and its gain at most 1, for delays of 2 to 3 samples.
_INTERPOLATOR_TAPS = 6
# Time constant of the damping by a finger.
_RELEASE_SECONDS = 0.07
_BODY_MODES = ((98.0, 0.030, 0.020), (204.0, 0.026, 0.014), (390.0, 0.016, 0.008))
"""Frequency in Hz, gain at 16 kHz, decay time in seconds."""


def frequency(pitch: float) -> float:
    """Return the frequency of a MIDI number in Hz, equal temperament, 69 = 440 Hz."""
    return 440.0 * 2.0 ** ((pitch - 69) / 12)


def _response(taps: np.ndarray, omega: float) -> complex:
    return complex(np.sum(taps * np.exp(-1j * omega * np.arange(len(taps)))))


def _lagrange(delay: float) -> np.ndarray:
    taps = np.ones(_INTERPOLATOR_TAPS)
    for k in range(_INTERPOLATOR_TAPS):
        for m in range(_INTERPOLATOR_TAPS):
            if m != k:
                taps[k] *= (delay - m) / (k - m)
    return taps


def loop_filter(hertz: float, rate: float) -> tuple[int, np.ndarray]:
    """Return the whole-sample delay and the FIR taps of the loop of a string.

    Together they delay the fundamental by exactly one period, with a T60 near three seconds. The symmetric
    three-tap average damps high partials by the same share per second at every pitch.
    """
    omega = 2 * math.pi * hertz / rate
    damping = min(0.2, 6.0 * (rate / 48000) / hertz)
    average = np.array([damping, 1 - 2 * damping, damping])
    period = rate / hertz
    delay = math.floor(period) - 3
    wanted = period - delay
    # The average has linear phase: it delays every frequency by one sample.
    guess = wanted - 1
    taps = np.convolve(_lagrange(guess), average)
    # The phase of Lagrange interpolation is not exactly linear: correct the nominal delay iteratively.
    for _ in range(8):
        guess += wanted + np.angle(_response(taps, omega)) / omega
        taps = np.convolve(_lagrange(guess), average)
    seconds = 3.0 * (262 / hertz) ** 0.3
    gain = 10 ** (-3 / (hertz * seconds)) / abs(_response(taps, omega))
    # A loop gain above 1 at 0 Hz would amplify rounding errors.
    return delay, taps * min(gain, 0.99995)


def _pluck(hertz: float, rate: float, band: float, velocity: float, rng: random.Random) -> np.ndarray:
    """Return one period of the pulse of a pick at the bridge, without partials above ``band`` Hz."""
    length = round(rate / hertz)
    partials = np.arange(1, max(1, int(band / hertz)) + 1)
    position = 0.17 + 0.03 * rng.random()
    # In Hz: a hard pluck is brighter.
    corner = 350 + 1600 * velocity
    size = np.sin(math.pi * partials * position) / (partials * (1 + (partials * hertz / corner) ** 2))
    size *= 1 + 0.3 * (np.array([rng.random() for _ in partials]) - 0.5)
    time = np.arange(length) / length - 0.5
    pulse = np.cos(2 * math.pi * np.outer(time, partials)) @ size
    return pulse - pulse.mean()


def string(
    pitch: float, seconds: float, velocity: float, rate: float, band: float, rng: random.Random
) -> np.ndarray:
    """Render one plucked string.

    Parameters
    ----------
    pitch : MIDI number, 69 = 440 Hz.
    seconds : time until the string is damped; the sound lasts about 0.5 s longer.
    velocity : 0 to 1; a higher one is louder and brighter.
    rate, band : sample rate and highest partial, in Hz.
    rng : source of the variation between plucks.

    Returns
    -------
    float64 (samples,) at unit scale, ending in silence.
    """
    hertz = frequency(pitch)
    delay, taps = loop_filter(hertz, rate)
    pluck = _pluck(hertz, rate, band, velocity, rng)
    held = round(seconds * rate)
    total = held + round(7 * _RELEASE_SECONDS * rate)
    pad = delay + len(taps)
    sound = np.zeros(pad + total)
    first = min(len(pluck), total)
    sound[pad : pad + first] = pluck[:first]
    # Every sample depends on samples at least `delay` before it, so blocks of that size are computed at once.
    # The taps are summed in a fixed order: a dot product rounds differently on different machines, and the
    # loop would accumulate the differences.
    for start in range(pad, pad + total, delay):
        stop = min(start + delay, pad + total)
        for k, tap in enumerate(taps):
            sound[start:stop] += tap * sound[start - delay - k : stop - delay - k]
    sound = sound[pad:]
    sound[held:] *= np.exp(-np.arange(total - held) / (_RELEASE_SECONDS * rate))
    fade = min(total, round(0.02 * rate))
    sound[total - fade :] *= np.linspace(1, 0, fade)
    return velocity * sound


def _decimate(sound: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return sound
    half = 24 * factor
    time = np.arange(-half, half + 1) / factor
    window = np.blackman(2 * half + 3)[1:-1]
    taps = 0.92 * np.sinc(0.92 * time) * window / factor
    return np.convolve(sound, taps, "same")[::factor]


def _body(sound: np.ndarray, rate: int) -> np.ndarray:
    """Add the lowest resonances of a wooden box."""
    time = np.arange(round(0.1 * rate)) / rate
    impulse = sum(
        gain * (16000 / rate) * np.exp(-time / decay) * np.sin(2 * math.pi * hertz * time)
        for hertz, gain, decay in _BODY_MODES
    )
    return sound + np.convolve(sound, np.asarray(impulse))[: len(sound)]


def render(
    notes: list[tuple[float, float, int, float]], sample_rate: int, rng: random.Random, peak: float = 0.7
) -> np.ndarray:
    """Render notes as mono audio.

    Parameters
    ----------
    notes : (start in s, length in s, MIDI number, velocity from 0 to 1).
    sample_rate : in Hz; strings are computed at a multiple of it, at least 44.1 kHz, for exact tuning.
    rng : source of the variation between plucks.
    peak : largest absolute sample.

    Returns
    -------
    float32 (samples,) in [-peak, peak], without an offset.
    """
    factor = max(1, math.ceil(44100 / sample_rate))
    rate = sample_rate * factor
    sounds = [
        (round(start * rate), string(pitch, length, velocity, rate, 0.44 * sample_rate, rng))
        for start, length, pitch, velocity in notes
    ]
    mix = np.zeros(max((start + len(sound) for start, sound in sounds), default=0))
    for start, sound in sounds:
        mix[start : start + len(sound)] += sound
    mix = _body(_decimate(mix, factor), sample_rate)
    mix -= mix.mean()
    # Subtracting the mean leaves a small step at both ends.
    fade = min(len(mix) // 2, round(0.005 * sample_rate))
    mix[:fade] *= np.linspace(0, 1, fade)
    mix[len(mix) - fade :] *= np.linspace(1, 0, fade)
    return (mix * (peak / max(np.abs(mix).max(initial=0), 1e-9))).astype(np.float32)
