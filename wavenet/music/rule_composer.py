"""Composes short tunes by rule: two voices in a major or minor key.

The harmony is a sequence of chords with a half cadence in the middle and a full cadence at the end. The bass
arpeggiates each chord. The melody has a chord tone on each strong beat and moves by steps of the scale
between them; its second half repeats the first with another ending. A seed determines the tune.
"""

from __future__ import annotations

import random

import numpy as np

from wavenet.errors import ConfigError
from wavenet.music.score import Score

TICKS = 480  # A quarter note.
BEATS = 4
BARS = (8, 16)
BASS, MELODY = (36, 57), (60, 84)
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
# Degrees on which a chord may follow another, from common practice.
NEXT = {0: (3, 4, 5, 1), 1: (4,), 3: (4, 1, 0), 4: (0, 5), 5: (3, 1)}
# Rhythms of half a bar, in eighth notes.
RHYTHMS = ((2, 2), (1, 1, 2), (1, 1, 1, 1), (3, 1), (2, 1, 1))
STEPS = 8  # Compass of the melody in steps of the scale: an octave.

Note = tuple[int, int, int, int]  # start and length in ticks, MIDI number, velocity


def chords(rng: random.Random, bars: int) -> list[int]:
    """Return degrees of the chords, one per bar: a half cadence (on 4) in the middle, 4 to 0 at the end."""
    half = bars // 2
    while True:
        chain = [0]
        while len(chain) < half:
            chain.append(rng.choice(NEXT[chain[-1]]))
        if chain[-1] == 4 and (half < 3 or chain[-2] != 4):
            break
    return chain + chain[: half - 2] + [4, 0]


def pitch(key: int, scale: tuple[int, ...], step: int, raised: bool = False) -> int:
    """Return the MIDI pitch of a step of the scale above the key; `raised` raises the seventh degree."""
    octave, degree = divmod(step, 7)
    return key + 12 * octave + (11 if raised and degree == 6 else scale[degree])


def melody(rng: random.Random, chain: list[int], lowest: int) -> list[tuple[int, int, int]]:
    """Return the upper voice, within STEPS above `lowest`: start and length in eighths, step of scale."""
    notes: list[tuple[int, int, int]] = []
    half, step, eighths = len(chain) // 2, lowest + rng.choice((4, 7)), 2 * BEATS
    for bar, chord in enumerate(chain):
        if half <= bar < len(chain) - 2:
            # Repeat the first half.
            notes += [
                (start + half * eighths, length, each)
                for start, length, each in notes
                if start // eighths == bar - half
            ]
            step = notes[-1][2]
            continue
        for part in range(2):
            if bar == len(chain) - 1 and part == 1:
                break
            tones = [each for each in range(lowest, lowest + STEPS) if (each - chord) % 7 in (0, 2, 4)]
            step = min(tones, key=lambda each: (abs(each - step) + 3 * (each == step), rng.random()))
            if bar == len(chain) - 1:
                step = min((each for each in tones if each % 7 == 0), key=lambda each: abs(each - step))
                notes.append((bar * eighths, eighths, step))
                continue
            start = bar * eighths + part * BEATS
            way = rng.choice((-1, 1))
            for count, length in enumerate(rng.choice(RHYTHMS)):
                if count:
                    way = way if lowest <= step + way < lowest + STEPS else -way
                    step += way
                notes.append((start, length, step))
                start += length
    return notes


def compose(seed: int, bars: int = 8) -> tuple[list[Note], list[Note]]:
    """Return the melody and the bass of a tune, each in order of time.

    Raises `ConfigError` if `bars` is odd or outside BARS.
    """
    if not BARS[0] <= bars <= BARS[1] or bars % 2:
        raise ConfigError(f"{bars} bars: use an even number from {BARS[0]} to {BARS[1]}")
    rng = random.Random(seed)
    key, scale = rng.randrange(55, 67), rng.choice((MAJOR, MINOR))
    chain = chords(rng, bars)
    lowest = next(step for step in range(-7, 8) if pitch(key, scale, step) >= MELODY[0])
    eighth = TICKS // 2
    upper = []
    for start, length, step in melody(rng, chain, lowest):
        leading = chain[start // (2 * BEATS)] == 4
        accent = 92 if start % (2 * BEATS) == 0 else 84 if start % BEATS == 0 else 76
        velocity = accent + rng.randrange(-4, 5)
        upper.append((start * eighth, length * eighth, pitch(key, scale, step, leading), velocity))
    lower = []
    for bar, chord in enumerate(chain):
        figure = (0,) if bar == bars - 1 else rng.choice(((0, 4), (0, 2, 4, 2), (0, 4, 7, 4)))
        length = BEATS * TICKS // len(figure)
        for count, third in enumerate(figure):
            number = pitch(key, scale, chord + third, raised=chord == 4) - 12
            while number > BASS[1]:
                number -= 12
            lower.append(((bar * BEATS * TICKS) + count * length, length, number, 66 + rng.randrange(-4, 5)))
    return upper, lower


TEMPO = 96.0
"""Quarter notes per minute."""

RELEASE_TICKS = TICKS // 32
"""Ticks by which notes are shortened, so that repeated notes are separate."""


def score_of(voices: tuple[list[Note], ...], tempo: float = TEMPO) -> Score:
    """Return voices as a score, at a tempo in quarter notes per minute."""
    notes = np.array([note for voice in voices for note in voice], dtype=np.float64)
    second = 60 / tempo / TICKS
    onset = notes[:, 0] * second
    return Score(onset, onset + (notes[:, 1] - RELEASE_TICKS) * second, notes[:, 2], notes[:, 3])
