"""The example audio: tunes, string model, command line, and the files that are committed."""

import hashlib
import importlib
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
AUDIO = sorted((EXAMPLES / "audio").iterdir())

sys.path.insert(0, str(EXAMPLES))
try:
    make_audio, pluck, tunes = (importlib.import_module(name) for name in ("make_audio", "pluck", "tunes"))
finally:
    sys.path.remove(str(EXAMPLES))

soundfile = pytest.importorskip("soundfile")


def tune(stem):
    return next(each for each in tunes.TUNES if each.stem == stem)


def note(pitch, seconds=3.0, sample_rate=16000):
    played = [(0.0, seconds, pitch, 0.8)]
    return pluck.render(played, sample_rate, random.Random(1)).astype(np.float64)


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "make_audio.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


# The tunes


@pytest.mark.parametrize("each", tunes.TUNES, ids=lambda each: each.stem)
def test_bars_are_full(each):
    parsed = [tunes.parse(voice.text, each.beats_per_bar) for voice in each.voices]
    assert len({beats for _, beats in parsed}) == 1
    assert all(
        beats == each.beats_per_bar * (voice.text.count("|") + 1)
        for (_, beats), voice in zip(parsed, each.voices, strict=True)
    )
    pitches = [
        n.pitch + v.shift + up
        for (ns, _), v in zip(parsed, each.voices, strict=True)
        for n in ns
        for up, _ in each.passes
    ]
    assert 36 <= min(pitches) <= max(pitches) <= 86


@pytest.mark.parametrize(
    ("stem", "opening"),
    [
        ("ode-to-joy", [66, 66, 67, 69, 69, 67, 66, 64, 62, 62, 64, 66]),
        ("twinkle", [72, 72, 79, 79, 81, 81, 79, 77, 77, 76, 76, 74, 74, 72]),
        ("frere-jacques", [60, 62, 64, 60, 60, 62, 64, 60, 64, 65, 67]),
        ("minuet-1", [74, 67, 69, 71, 72, 74, 67, 67, 76, 72, 74, 76, 78, 79, 67, 67]),
        ("prelude", [60, 64, 67, 72, 76, 67, 72, 76]),
    ],
)
def test_openings_of_the_melodies(stem, opening):
    notes, _ = tunes.parse(tune(stem).voices[0].text, tune(stem).beats_per_bar)
    assert [each.pitch for each in notes[: len(opening)]] == opening


def test_notation():
    notes, beats = tunes.parse("a4:1 bb3+c#5:.5 r | c4:2", 2)
    assert beats == 4
    assert [(float(n.start), float(n.beats), n.pitch) for n in notes] == [
        (0, 1, 69),
        (1, 0.5, 58),
        (1, 0.5, 73),
        (2, 2, 60),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c4:1 c4 | c4", "bar 2 has 1 beats instead of 2"),
        ("c4:3", "bar 1 has 3 beats instead of 2"),
        ("h4:2", "bar 1: cannot read 'h4:2'"),
        ("c4: d4", "bar 1: cannot read 'c4:'"),
        ("c##4:2", "'c##4' is not a note"),
    ],
)
def test_notation_errors(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tunes.parse(text, 2)


# The string


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
@pytest.mark.parametrize("pitch", [40, 45, 57, 69, 76, 83, 88])
def test_strings_are_in_tune(pitch, sample_rate):
    sound = note(pitch, 2.5, sample_rate)[sample_rate // 4 : sample_rate // 4 + 2 * sample_rate]
    expected = 440 * 2 ** ((pitch - 69) / 12)
    size = 2**19
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size))
    for partial in (1, 2):
        low, high = (int(expected * partial * ratio * size / sample_rate) for ratio in (0.97, 1.03))
        top = low + int(np.argmax(spectrum[low:high]))
        a, b, c = np.log(spectrum[top - 1 : top + 2])
        found = (top + 0.5 * (a - c) / (a - 2 * b + c)) * sample_rate / size
        assert abs(1200 * np.log2(found / (expected * partial))) < 2


@pytest.mark.parametrize("pitch", [40, 60, 72, 84])
def test_strings_decay_without_a_click(pitch):
    sound = note(pitch, 2.0)
    early, late = (np.sqrt(np.mean(sound[t : t + 1600] ** 2)) for t in (8000, 24000))
    assert 1.5 < 60 / (20 * np.log10(early / late)) < 5  # T60 in seconds
    slope = np.abs(np.diff(sound))
    assert slope[2 * 16000 :].max() < slope[16000 : 2 * 16000].max()
    assert np.abs(sound[-80:]).max() < 1e-3


def test_force_raises_loudness_and_brightness():
    soft, hard = (pluck.string(60, 1.0, v, 48000, 7000, random.Random(3)) for v in (0.3, 0.9))
    spectra = [np.abs(np.fft.rfft(sound[:24000])) ** 2 for sound in (soft, hard)]
    brightness = [spectrum[1000:].sum() / spectrum.sum() for spectrum in spectra]  # above 2 kHz
    assert np.abs(hard).max() > 2 * np.abs(soft).max()
    assert brightness[1] > 2 * brightness[0]


# A tune


@pytest.fixture(scope="module")
def minuet():
    return make_audio.render_tune(tune("minuet-1"), 16000, 0)


def test_level_and_length_of_a_rendered_tune(minuet):
    assert minuet.dtype == np.float32 and np.isfinite(minuet).all()
    assert np.abs(minuet).max() == pytest.approx(0.7, abs=1e-6)
    assert abs(minuet.mean()) < 1e-4
    assert 0.05 < np.sqrt(np.mean(minuet**2)) < 0.3
    # 16 bars of 3 beats at 132 per minute, and the ringing last chord.
    assert 16 * 3 * 60 / 132 < len(minuet) / 16000 < 16 * 3 * 60 / 132 + 2


def test_same_seed_gives_the_same_sound(minuet):
    assert np.array_equal(make_audio.render_tune(tune("minuet-1"), 16000, 0), minuet)
    other = make_audio.render_tune(tune("minuet-1"), 16000, 1)
    assert len(other) != len(minuet) or not np.array_equal(other, minuet)


def test_transposed_pass_repeats_the_notes():
    sakura = tune("sakura")
    played = make_audio.perform(sakura, random.Random(0))
    first, second = played[: len(played) // 2], played[len(played) // 2 :]
    assert sorted(p + 3 for _, _, p, _ in first) == sorted(p for _, _, p, _ in second)
    assert all(0 < velocity <= 1 and start >= 0 for start, _, _, velocity in played)


# Committed files


def test_committed_files_match_the_readme():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in AUDIO] == sorted(f"{each.stem}.flac" for each in tunes.TUNES)
    seconds = 0.0
    for path in AUDIO:
        audio, sample_rate = soundfile.read(path)
        assert sample_rate == 16000 and audio.ndim == 1
        assert 0.69 < np.abs(audio).max() < 0.71 and abs(audio.mean()) < 1e-3
        seconds += len(audio) / sample_rate
    said = re.search(r"about ([\d.]+) minutes", readme)
    assert said and abs(seconds / 60 - float(said[1])) <= 0.05
    for each in tunes.TUNES:
        assert f"| `{each.stem}.flac` | {each.title} | {each.origin} |" in readme
    # The size of the notebook has a test of its own.
    assert sum(path.stat().st_size for path in (EXAMPLES / "audio").iterdir()) < 3_000_000


def test_committed_file_equals_the_script_output(minuet):
    audio, _ = soundfile.read(EXAMPLES / "audio" / "minuet-1.flac")
    assert len(audio) == len(minuet)
    # Half a step of rounding; on another machine one sample in a thousand may round the other way.
    assert np.mean(np.abs(audio - minuet) > 0.501 / make_audio.STEPS) < 1e-3
    assert np.abs(audio - minuet).max() < 1.6 / make_audio.STEPS


def test_some_files_are_for_validation():
    shares = {
        p.name: int.from_bytes(hashlib.sha256(p.name.encode()).digest()[:8], "little") / 2**64 for p in AUDIO
    }
    chosen = [name for name, share in shares.items() if share < 0.1]
    assert chosen == ["ode-to-joy.flac", "sakura.flac"]


# The command line


def test_command_overwrites_only_with_force(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_audio, "TUNES", (tune("twinkle"), tune("minuet-1")))
    out = tmp_path / "new" / "audio"
    arguments = ["--out-dir", str(out), "--sample-rate", "8000"]
    assert make_audio.main(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["minuet-1.flac", "twinkle.flac"]
    assert soundfile.info(out / "twinkle.flac").samplerate == 8000
    before = (out / "twinkle.flac").read_bytes()
    (out / "minuet-1.flac").unlink()
    capsys.readouterr()
    assert make_audio.main(arguments) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"make_audio: {out / 'twinkle.flac'} exists (1 files in all): use --force to overwrite"
    ]
    assert [path.name for path in out.iterdir()] == ["twinkle.flac"]
    (out / "twinkle.flac").write_bytes(b"")
    assert make_audio.main([*arguments, "--force"]) == 0
    assert (out / "twinkle.flac").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sample-rate", "100"], "--sample-rate 100 is not between"),
        (["--fluidsynth", "none.sf2"], "no SoundFont at none.sf2"),
        (["--fluidsynth", EXAMPLES / "README.md"], "fluidsynth is not on the PATH"),
        (["--out-dir", EXAMPLES / "README.md"], "cannot write to"),
    ],
)
def test_command_errors_are_one_line(arguments, message, tmp_path):
    done = command("--out-dir", tmp_path / "out", *arguments, PATH=str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_options_are_not_abbreviated():
    assert command("--forc").returncode == 2
    assert "default: 16000" in command("--help", COLUMNS="200").stdout


def test_scores_match_the_committed_audio(tmp_path, minuet):
    """The sound rises at the onsets of the score, and less 0.1 s later."""
    assert make_audio.main(["--scores", str(tmp_path)]) == 0
    assert sorted(path.stem for path in tmp_path.iterdir()) == [path.stem for path in AUDIO]
    events = read_midi((tmp_path / "minuet-1.mid").read_bytes())
    struck = np.array(sorted({seconds for seconds, status, _ in events if status == 0x90}))

    def rises(times):
        places = (times * 16000).astype(int)
        before, after = (
            np.array([minuet[p + a : p + b].std() for p in places]) for a, b in ((-480, 0), (0, 480))
        )
        return np.median(np.log(after / before)[1:])

    assert rises(struck) > 0.2 > rises(struck + 0.1)
    assert make_audio.main(["--scores", str(tmp_path)]) == 1


# FluidSynth


def read_midi(data):
    """Return (seconds, status, bytes) of the events of a file with one track at the default tempo."""
    assert data[:4] == b"MThd" and data[14:18] == b"MTrk"
    size, kind, tracks, division = struct.unpack(">IHHH", data[4:14])
    assert (size, kind, tracks) == (6, 0, 1)
    assert struct.unpack(">I", data[18:22])[0] == len(data) - 22
    at, ticks, events = 22, 0, []
    while at < len(data):
        delta = 0
        while True:
            delta = delta << 7 | data[at] & 127
            at += 1
            if data[at - 1] < 128:
                break
        ticks += delta
        length = {0xC0: 2, 0xFF: 3}.get(data[at], 3)
        events.append((ticks / division / 2, data[at], data[at + 1 : at + length]))
        at += length
    assert events[-1][1:] == (0xFF, b"\x2f\x00")
    return events[:-1]


def test_midi_file_plays_the_notes():
    played = make_audio.perform(tune("frere-jacques"), random.Random(0))
    events = read_midi(make_audio.midi_file(played))
    struck = [(seconds, data[0]) for seconds, status, data in events if status == 0x90]
    assert sorted(pitch for _, pitch in struck) == sorted(pitch for _, _, pitch, _ in played)
    assert [s for s, _ in struck] == pytest.approx([start for start, *_ in played], abs=0.002)
    stopped = sorted(seconds for seconds, status, _ in events if status == 0x80)
    assert stopped == pytest.approx(sorted(start + length for start, length, *_ in played), abs=0.002)


FAKE = """#!{python}
import struct, sys
out, rate = sys.argv[sys.argv.index("-F") + 1], int(sys.argv[sys.argv.index("-r") + 1])
assert open(sys.argv[-1], "rb").read(4) == b"MThd"
if sys.argv[-2].endswith("bad.sf2"):
    sys.exit("loading\\nnot a SoundFont")
data = struct.pack("<8h", 0, 0, 8000, 8000, -4000, -4000, 0, 0)
form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, rate, 4 * rate, 4, 16)
head = struct.pack("<4sI4s", b"RIFF", 52, b"WAVE") + form + struct.pack("<4sI", b"data", 16)
open(out, "wb").write(head + data)
"""


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for FluidSynth is a script with a #! line")
def test_fluidsynth_and_its_failures(tmp_path, monkeypatch):
    program = tmp_path / "fluidsynth"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    font, bad = tmp_path / "font.sf2", tmp_path / "bad.sf2"
    audio = make_audio.render_tune(tune("twinkle"), 16000, 0, font)
    np.testing.assert_allclose(audio, [0, 0.7, -0.35, 0], atol=1e-6)
    with pytest.raises(make_audio.ExampleError, match=r"status 1 on .*bad\.sf2: not a SoundFont"):
        make_audio.render_tune(tune("twinkle"), 16000, 0, bad)
