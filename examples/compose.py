"""Compose a small tune by rule and write it as a MIDI file for wavenet-generate --midi.

The rules are in wavenet/music/rule_composer.py. The same seed writes the same tune.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wavenet.errors import ConfigError
from wavenet.music.rule_composer import BASS, BEATS, MELODY, RELEASE_TICKS, TEMPO, TICKS, Note, compose

__all__ = ["BASS", "MELODY", "compose", "write_midi"]


class ComposeError(Exception):
    """A mistake that the user can correct."""


def write_midi(path: Path, voices: tuple[list[Note], ...], tempo: float) -> None:
    """Write voices as a MIDI file, each in its own track and channel, at a tempo in beats per minute."""
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
        # Release a little early, so that a repeated note is struck again.
        events += [(start + length - RELEASE_TICKS, 0, number, 0) for start, length, number, _ in voice]
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
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the MIDI file to write, such as tune.mid")
    parser.add_argument("--seed", type=int, default=0, help="seed of the tune")
    parser.add_argument("--bars", type=int, default=8, metavar="N", help="bars of four beats; even, 8 to 16")
    parser.add_argument("--tempo", type=float, default=TEMPO, metavar="BPM", help="quarter notes per minute")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    options = parser.parse_args(arguments)
    try:
        if not 20 <= options.tempo <= 400:
            raise ComposeError(f"--tempo {options.tempo:g} is not between 20 and 400")
        if options.out.exists() and not options.force:
            raise ComposeError(f"{options.out} exists: use --force to overwrite")
        voices = compose(options.seed, options.bars)
        write_midi(options.out, voices, options.tempo)
    except (ComposeError, ConfigError) as error:
        print(f"compose: {error}", file=sys.stderr)
        return 1
    seconds = options.bars * BEATS * 60 / options.tempo
    print(
        f"{options.out}  {options.bars} bars, {sum(map(len, voices))} notes, {seconds:.1f} s", file=sys.stderr
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
