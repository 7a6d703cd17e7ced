"""Write a small tune by rule, two voices in a major or minor key, as a MIDI file for wavenet-generate --midi.

The harmony is a chain of chords with a half close in the middle and a full close at the end. The bass walks
through the tones of each chord; the melody takes a chord tone on each strong beat and steps along the scale
between, and its first half comes back as its second, with another ending. One seed always writes one tune.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

TICKS = 480  # A quarter note.
BEATS = 4
BARS = (8, 16)
BASS, MELODY = (36, 57), (60, 84)
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
# Degrees of the scale on which a chord may follow another; from common practice.
NEXT = {0: (3, 4, 5, 1), 1: (4,), 3: (4, 1, 0), 4: (0, 5), 5: (3, 1)}
# Of half a bar, in eighth notes.
RHYTHMS = ((2, 2), (1, 1, 2), (1, 1, 1, 1), (3, 1), (2, 1, 1))
STEPS = 8  # Compass of the melody in steps of the scale: an octave.

Note = tuple[int, int, int, int]  # start and length in ticks, MIDI number, velocity


class ComposeError(Exception):
    """Something the person at the keyboard can put right."""


def chords(rng: random.Random, bars: int) -> list[int]:
    """Degrees of the chords, one a bar: a half close (on the fifth) in the middle, 4 to 0 at the end."""
    half = bars // 2
    while True:
        chain = [0]
        while len(chain) < half:
            chain.append(rng.choice(NEXT[chain[-1]]))
        if chain[-1] == 4 and (half < 3 or chain[-2] != 4):
            break
    return chain + chain[: half - 2] + [4, 0]


def pitch(key: int, scale: tuple[int, ...], step: int, raised: bool = False) -> int:
    """MIDI number of a step of the scale from the key up; `raised` lifts the seventh to lead to the key."""
    octave, degree = divmod(step, 7)
    return key + 12 * octave + (11 if raised and degree == 6 else scale[degree])


def melody(rng: random.Random, chain: list[int], lowest: int) -> list[tuple[int, int, int]]:
    """(start and length in eighths, step of the scale) of the upper voice, in STEPS steps from `lowest`."""
    notes: list[tuple[int, int, int]] = []
    half, step, eighths = len(chain) // 2, lowest + rng.choice((4, 7)), 2 * BEATS
    for bar, chord in enumerate(chain):
        if half <= bar < len(chain) - 2:
            # The first half again.
            notes += [
                (start + half * eighths, *rest) for start, *rest in notes if start // eighths == bar - half
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
    """Return the melody and the bass of a tune, in the order of their starts.

    Raises `ComposeError` if `bars` is odd or outside BARS.
    """
    if not BARS[0] <= bars <= BARS[1] or bars % 2:
        raise ComposeError(f"--bars {bars}: use an even number from {BARS[0]} to {BARS[1]}")
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


def write_midi(path: Path, voices: tuple[list[Note], ...], tempo: float) -> None:
    """Write voices as a MIDI file, each a track and a channel of its own, at a tempo in beats a minute."""
    try:
        import mido
    except ImportError:
        raise ComposeError("writing MIDI needs the package mido: pip install 'wavenet[midi]'") from None
    file = mido.MidiFile(type=1, ticks_per_beat=TICKS)
    for channel, voice in enumerate(voices):
        track = mido.MidiTrack()
        if channel == 0:
            track.append(mido.MetaMessage("set_tempo", tempo=round(60e6 / tempo)))
        events = [(start, 1, number, velocity) for start, _, number, velocity in voice]
        # Let go a little early, so that a note that comes again is struck anew.
        events += [(start + length - TICKS // 32, 0, number, 0) for start, length, number, _ in voice]
        now = 0
        for tick, begins, number, velocity in sorted(events):
            name = "note_on" if begins else "note_off"
            track.append(mido.Message(name, channel=channel, note=number, velocity=velocity, time=tick - now))
            now = tick
        file.tracks.append(track)
    try:
        file.save(path)
    except OSError as error:
        raise ComposeError(f"cannot write {path}: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the MIDI file to write, such as tune.mid")
    parser.add_argument("--seed", type=int, default=0, help="chooses the tune")
    parser.add_argument("--bars", type=int, default=8, metavar="N", help="of four beats, 8 to 16, even")
    parser.add_argument("--tempo", type=float, default=96, metavar="BPM", help="quarter notes a minute")
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")
    options = parser.parse_args(arguments)
    try:
        if not 20 <= options.tempo <= 400:
            raise ComposeError(f"--tempo {options.tempo:g} is not between 20 and 400")
        if options.out.exists() and not options.force:
            raise ComposeError(f"{options.out} exists: use --force to overwrite")
        voices = compose(options.seed, options.bars)
        write_midi(options.out, voices, options.tempo)
    except ComposeError as error:
        print(f"compose: {error}", file=sys.stderr)
        return 1
    seconds = options.bars * BEATS * 60 / options.tempo
    print(
        f"{options.out}  {options.bars} bars, {sum(map(len, voices))} notes, {seconds:.1f} s", file=sys.stderr
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
