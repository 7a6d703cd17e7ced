"""Render the public-domain tunes of ``tunes.py`` as FLAC files, with a plucked-string model or FluidSynth.

With --scores, write the played notes as MIDI files instead.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tunes import TUNES, Tune, parse

if TYPE_CHECKING:
    import numpy as np

Played = tuple[float, float, int, float]
"""Start and length in seconds, MIDI number, velocity from 0 to 1."""

PEAK = 0.7
# Steps to full scale. 13 bits make FLAC files a third smaller than 16; the noise is 80 dB below full scale.
STEPS = 2**12
# 480 per quarter note, 120 quarter notes per minute.
_TICKS_PER_SECOND = 960


class ExampleError(Exception):
    """A mistake that the user can correct."""


def perform(tune: Tune, rng: random.Random) -> list[Played]:
    """Return the notes of a tune in time order, up to 8 ms early or late, downbeats stronger."""
    played: list[Played] = []
    opening = 0.05
    for shift, factor in tune.passes:
        beat = 60 / (tune.tempo * factor)
        closing = opening
        for voice in tune.voices:
            notes, beats = parse(voice.text, tune.beats_per_bar)
            closing = max(closing, opening + float(beats) * beat)
            for note in notes:
                start = opening + float(note.start) * beat + 0.016 * (rng.random() - 0.5)
                accent = 1.0 if note.start % tune.beats_per_bar == 0 else 0.88
                velocity = 0.8 * voice.level * accent * (1 + 0.16 * (rng.random() - 0.5))
                length = float(note.beats) * beat + voice.ring
                if note.start + note.beats == beats:
                    # The last chord rings out.
                    length += 0.8
                played.append((start, length, note.pitch + voice.shift + shift, velocity))
        opening = closing + 0.6
    return sorted(played)


def midi_file(played: list[Played]) -> bytes:
    """Return a Standard MIDI File of one track, on program 25 (nylon guitar)."""
    events = []
    for start, length, pitch, velocity in played:
        on, off = round(start * _TICKS_PER_SECOND), round((start + length) * _TICKS_PER_SECOND)
        events += [
            (on, 1, bytes([0x90, pitch, max(1, round(127 * velocity))])),
            (off, 0, bytes([0x80, pitch, 0])),
        ]
    events.append((max(tick for tick, _, _ in events) + _TICKS_PER_SECOND, 2, b"\xff\x2f\x00"))
    track = b"\x00\xc0\x18"
    now = 0
    for tick, _, message in sorted(events):
        delta, now = tick - now, tick
        # A variable-length number: seven bits per byte, all but the last byte marked.
        number = bytes([delta & 0x7F])
        while delta := delta >> 7:
            number = bytes([delta & 0x7F | 0x80]) + number
        track += number + message
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(track)) + track


def render_fluidsynth(played: list[Played], sample_rate: int, soundfont: Path) -> np.ndarray:
    """Render the notes through FluidSynth with a SoundFont; return mono float32 (samples,)."""
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        song, sound = Path(folder, "song.mid"), Path(folder, "song.wav")
        song.write_bytes(midi_file(played))
        command = [
            "fluidsynth",
            "-ni",
            "-q",
            "-g",
            "0.5",
            "-r",
            str(sample_rate),
            "-T",
            "wav",
            "-F",
            str(sound),
        ]
        done = subprocess.run(
            [*command, str(soundfont.resolve()), str(song)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode or not sound.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExampleError(f"fluidsynth ended with status {done.returncode} on {soundfont}: {last}")
        audio, _ = soundfile.read(sound, dtype="float32", always_2d=True)
    mono = audio.mean(axis=1)
    peak = float(abs(mono).max(initial=0))
    if peak == 0:
        raise ExampleError(
            f"fluidsynth rendered only silence with {soundfont}: choose a SoundFont that contains a guitar"
        )
    return mono * (PEAK / peak)


def variation(tune: Tune, seed: int) -> random.Random:
    """Return the generator of a tune's random variation, used first for the notes, then for the strings."""
    return random.Random(f"{seed}/{tune.stem}")


def render_tune(tune: Tune, sample_rate: int, seed: int, soundfont: Path | None = None) -> np.ndarray:
    """Render a tune; return mono float32 (samples,) with a peak of 0.7."""
    from pluck import render

    rng = variation(tune, seed)
    played = perform(tune, rng)
    if soundfont is not None:
        return render_fluidsynth(played, sample_rate, soundfont)
    return render(played, sample_rate, rng, PEAK)


def write_flac(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write FLAC (16-bit words, 13 bits used) to a temporary file and rename it."""
    import soundfile

    words = ((audio * STEPS).round() * (2**15 // STEPS)).astype("int16")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        soundfile.write(part, words, sample_rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_scores(folder: Path, seed: int, force: bool) -> None:
    """Write the played notes of every tune as a MIDI file with the name of its audio file."""
    paths = [folder / f"{tune.stem}.mid" for tune in TUNES]
    refuse_existing(paths, force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for tune, path in zip(TUNES, paths, strict=True):
            played = perform(tune, variation(tune, seed))
            path.write_bytes(midi_file(played))
            print(f"{path}  {len(played)} notes", file=sys.stderr)
    except OSError as error:
        raise ExampleError(f"cannot write to {folder}: {error}") from error


def refuse_existing(paths: list[Path], force: bool) -> None:
    """Raise `ExampleError` if an output file exists, unless `force` is set."""
    existing = [path for path in paths if os.path.lexists(path)]
    if existing and not force:
        raise ExampleError(f"{existing[0]} exists ({len(existing)} files in all): use --force to overwrite")


def make_all(out_dir: Path, sample_rate: int, seed: int, force: bool, soundfont: Path | None) -> None:
    """Render every tune into ``out_dir``; write nothing if an output file exists."""
    if not 8000 <= sample_rate <= 96000:
        raise ExampleError(f"--sample-rate {sample_rate} is not between 8000 and 96000 Hz: try 16000")
    if soundfont is not None and not soundfont.is_file():
        raise ExampleError(f"no SoundFont at {soundfont}: pass the path of an .sf2 file to --fluidsynth")
    if soundfont is not None and shutil.which("fluidsynth") is None:
        raise ExampleError("fluidsynth is not on the PATH: install it, or leave --fluidsynth out")
    try:
        import soundfile
    except ImportError:
        raise ExampleError("writing FLAC needs the package soundfile: pip install soundfile") from None
    paths = [out_dir / f"{tune.stem}.flac" for tune in TUNES]
    refuse_existing(paths, force)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for tune, path in zip(TUNES, paths, strict=True):
            audio = render_tune(tune, sample_rate, seed, soundfont)
            write_flac(path, audio, sample_rate)
            print(f"{path}  {len(audio) / sample_rate:.1f} s  {path.stat().st_size} bytes", file=sys.stderr)
    except (OSError, soundfile.LibsndfileError) as error:
        raise ExampleError(f"cannot write to {out_dir}: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    default = Path(__file__).resolve().parent / "audio"
    parser.add_argument(
        "--out-dir", type=Path, default=default, metavar="DIR", help="folder for the FLAC files"
    )
    parser.add_argument("--sample-rate", type=int, default=16000, metavar="HZ", help="samples per second")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random variation of the playing")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument(
        "--fluidsynth",
        type=Path,
        metavar="SOUNDFONT",
        help="render through FluidSynth with this .sf2 file",
    )
    parser.add_argument(
        "--scores", type=Path, metavar="DIR", help="write the scores as MIDI files to DIR, and no audio"
    )
    options = parser.parse_args(arguments)
    try:
        if options.scores is not None:
            write_scores(options.scores, options.seed, options.force)
            return 0
        make_all(options.out_dir, options.sample_rate, options.seed, options.force, options.fluidsynth)
    except ExampleError as error:
        print(f"make_audio: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
