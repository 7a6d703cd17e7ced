"""Networks that are told something, from the folder to the sound, in processes as a person starts them."""

import json

import numpy as np
import pytest
import soundfile
from support.audio_files import pitch
from support.commands import NETWORK_FLAGS, assert_one_line_error, run
from support.scores import write_midi

from wavenet.audio.wav import write_wav
from wavenet.music.score import Score

RATE = 4000
SHORT = [*NETWORK_FLAGS, "--batch", "4", "--segment", "0.25", "--validate-every", "0", "--sample-every", "0"]
SHORT += ["--warmup-steps", "20", "--ema-decay", "0.95", "--lr", "0.01"]
HERTZ = {"high": 500.0, "low": 200.0}


def tone(hertz: float, seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.6 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A run on tones of two heights, each a class."""
    home = tmp_path_factory.mktemp("classes")
    for name, hertz in HERTZ.items():
        for number in range(2):
            (home / "audio" / name).mkdir(parents=True, exist_ok=True)
            write_wav(home / "audio" / name / f"{number}.wav", tone(hertz, 1.5), RATE)
    result = run(
        "train", "--audio-dir", "audio", "--classes", "folders", "--condition-dropout", "0.1",
        "--out-dir", "run", "--steps", "150", *SHORT, cwd=home,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "classes     high, low" in result.stderr
    return home


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A run on tones that change often, and which of them sounds is written in a score."""
    home = tmp_path_factory.mktemp("scores")
    rng = np.random.default_rng(0)
    for number in range(4):
        pitches = rng.choice([55, 71], 75)
        parts = [tone(440 * 2 ** ((p - 69) / 12), 0.03) for p in pitches]
        (home / "audio").mkdir(exist_ok=True)
        write_wav(home / "audio" / f"{number}.wav", np.concatenate(parts), RATE)
        write_midi(home / "midi" / f"{number}.mid", played(pitches, 0.03))
    result = run(
        "train", "--audio-dir", "audio", "--midi-dir", "midi", "--out-dir", "run", "--steps", "60",
        *SHORT, cwd=home,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "scores      4 read, 300 notes" in result.stderr
    return home


def played(pitches, seconds: float) -> Score:
    onset = seconds * np.arange(len(pitches))
    return Score(onset, onset + seconds, np.asarray(pitches, np.int64), np.full(len(pitches), 100))


def heard(path, start: float, stop: float) -> float:
    audio, rate = soundfile.read(path, dtype="float32")
    return pitch(audio[round(start * rate) : round(stop * rate)], rate)


@pytest.mark.slow
def test_each_class_sounds_as_its_recordings(classes):
    for name, hertz in HERTZ.items():
        result = run(
            "generate", "--checkpoint", "run", "--class", name, "--seconds", "0.5", "--seed", "1",
            "--temperature", "0.5", "--force", f"{name}.wav", cwd=classes,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert heard(classes / f"{name}.wav", 0.1, 0.5) == pytest.approx(hertz, rel=0.05)


@pytest.mark.slow
def test_a_way_from_class_to_class(classes):
    result = run(
        "generate", "--checkpoint", "run", "--class", "0:low 0.5:low 0.6:high", "--seconds", "1.2",
        "--temperature", "0.5", "--seed", "1", "way.wav", cwd=classes,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert heard(classes / "way.wav", 0.1, 0.5) == pytest.approx(200, rel=0.05)
    assert heard(classes / "way.wav", 0.8, 1.2) == pytest.approx(500, rel=0.05)


@pytest.mark.slow
def test_a_run_with_classes_resumes_and_is_scored(classes):
    more = run("train", "--resume", "--out-dir", "run", "--steps", "152", cwd=classes)
    assert more.returncode == 0, more.stderr
    effective = json.loads((classes / "run" / "effective.json").read_text())
    assert effective["classes"] == "folders" and effective["features"] == "none"
    told = run("evaluate", "--checkpoint", "run", "--audio-dir", "audio", "--json", "-", cwd=classes)
    assert told.returncode == 0, told.stderr
    parallel = json.loads(told.stdout)["scores"][0]["bits_per_sample"]
    loop = run(
        "evaluate", "--checkpoint", "run", "--audio-dir", "audio", "--backend", "reference", "--json", "-",
        cwd=classes,
    )  # fmt: skip
    assert loop.returncode == 0, loop.stderr
    assert json.loads(loop.stdout)["scores"][0]["bits_per_sample"] == pytest.approx(parallel, abs=1e-4)


@pytest.mark.slow
def test_what_was_in_effect_makes_the_same_network(scores):
    again = run("train", "--config", "run/effective.json", "--out-dir", "again", "--steps", "2", cwd=scores)
    assert again.returncode == 0, again.stderr
    configs = [json.loads((scores / run / "config.json").read_text()) for run in (
        "again/step-00000002", "run/step-00000060",
    )]  # fmt: skip
    assert configs[0] == configs[1]


def test_a_score_sets_the_length(scores):
    write_midi(scores / "new.mid", played([71, 55, 71, 55, 55], 0.2))
    for seed, name in ((2, "new.wav"), (2, "again.wav"), (3, "other.wav")):
        result = run("generate", "--checkpoint", "run", "--midi", "new.mid", "--seed", seed, name, cwd=scores)
        assert result.returncode == 0, result.stderr
    audio, rate = soundfile.read(scores / "new.wav")
    # As long as the score, and a while for the last note to ring out.
    assert len(audio) == round((1.0 + 1.5) * rate)
    assert (scores / "new.wav").read_bytes() == (scores / "again.wav").read_bytes()
    assert (scores / "new.wav").read_bytes() != (scores / "other.wav").read_bytes()


def test_a_score_counts_more_or_less(scores):
    write_midi(scores / "short.mid", played([71, 55], 0.1))
    takes = {}
    for guidance in (None, "1", "2", "0"):
        asked = [] if guidance is None else ["--guidance", guidance]
        result = run(
            "generate", "--checkpoint", "run", "--midi", "short.mid", "--seed", "4", *asked, "--force",
            "take.wav", cwd=scores,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        takes[guidance] = (scores / "take.wav").read_bytes()
    assert takes[None] == takes["1"] and len({takes["0"], takes["1"], takes["2"]}) == 3
    result = run(
        "generate", "--checkpoint", "run", "--midi", "short.mid", "--guidance", "-1", "no.wav", cwd=scores
    )
    assert_one_line_error(result, "guidance = -1: must be 0 or more")
    assert not (scores / "no.wav").exists()


def test_without_a_score_a_tune_is_composed(scores):
    result = run("generate", "--checkpoint", "run", "--seed", "4", "--seconds", "0.5", "made.wav", cwd=scores)
    assert result.returncode == 0, result.stderr
    assert "composed by rule, number 4; --midi FILE plays yours" in result.stderr
    assert len(soundfile.read(scores / "made.wav")[0]) == RATE // 2


def test_a_score_continues_a_recording(scores):
    write_midi(scores / "next.mid", played([71, 55], 0.2))
    result = run(
        "generate", "--checkpoint", "run", "--midi", "next.mid", "--prime", "audio/0.wav", "--seconds", "0.4",
        "next.wav", cwd=scores,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(soundfile.read(scores / "next.wav")[0]) == round(0.4 * RATE)


@pytest.mark.slow
def test_spectra_from_recordings_and_files(tmp_path):
    (tmp_path / "audio").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        parts = [tone(hertz, 0.03) for hertz in rng.choice([200, 500], 75)]
        write_wav(tmp_path / "audio" / f"{number}.wav", np.concatenate(parts), RATE)
    result = run(
        "train", "--audio-dir", "audio", "--features", "mel", "--n-mels", "16", "--n-fft", "256", "--out-dir",
        "run", "--steps", "60", *SHORT, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    write_wav(tmp_path / "given.wav", np.concatenate([tone(500, 0.4), tone(200, 0.4)]), RATE)
    common = ("--checkpoint", "run", "--temperature", "0.7", "--seed", "0")
    result = run("generate", *common, "--mel-from", "given.wav", "copied.wav", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(soundfile.read(tmp_path / "copied.wav")[0]) == round(0.8 * RATE)

    from wavenet.audio.mel import log_mel

    audio, _ = soundfile.read(tmp_path / "given.wav", dtype="float32")
    np.save(tmp_path / "frames.npy", log_mel(audio, RATE, 256, 40, 16, 30.0, 2000.0)[:, :80])
    result = run("generate", *common, "--features", "frames.npy", "given-frames.wav", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(soundfile.read(tmp_path / "given-frames.wav")[0]) == round(0.8 * RATE)

    # Fewer or more seconds than there are frames: a part of the same take, or more of it, told silence.
    whole = soundfile.read(tmp_path / "given-frames.wav")[0]
    for seconds in (0.33, 1.1):
        result = run(
            "generate", *common, "--features", "frames.npy", "--seconds", seconds, "other.wav", "--force",
            cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        other = soundfile.read(tmp_path / "other.wav")[0]
        assert len(other) == round(seconds * RATE)
        # Convolutions over frames look 70 ms ahead, as does the end of what is known.
        same = min(len(other), len(whole) - 8 * 40)
        assert (other[:same] == whole[:same]).all()

    np.save(tmp_path / "wrong.npy", np.zeros((17, 5), np.float32))
    np.save(tmp_path / "nan.npy", np.where(np.arange(5) == 3, np.nan, np.zeros((16, 5), np.float32)))
    (tmp_path / "text.npy").write_text("frames")
    for name, words in (
        ("wrong.npy", "expected floating point (16, frames)"),
        ("nan.npy", "frame 3 contains NaN or infinity"),
        ("text.npy", "is no .npy file"),
    ):
        result = run("generate", *common, "--features", name, "x.wav", cwd=tmp_path)
        assert_one_line_error(result, words)
    assert not (tmp_path / "x.wav").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["--class: this network has classes: choose among high, low"]),
        (["--class", "middle"], ["'middle'", "high, low"]),
        (["--class", "high:much"], ["NAME:WEIGHT"]),
        (["--class", "high", "--midi", "x.mid"], ["trained with no features"]),
        (["--midi", "none.mid"], ["trained with no features"]),
        (["--mel-from", "a.wav", "--midi", "b.mid"], ["give one of them"]),
    ],
)
def test_what_a_network_with_classes_refuses(classes, arguments, fragments):
    result = run("generate", "--checkpoint", "run", *arguments, "refused.wav", cwd=classes)
    assert_one_line_error(result, *fragments)
    assert not (classes / "refused.wav").exists()


def test_what_a_network_with_scores_refuses(scores):
    (scores / "text.mid").write_text("no score")
    write_midi(scores / "empty.mid", played([], 0.1))
    for arguments, words in (
        (["--midi", "text.mid"], "text.mid"),
        (["--midi", "empty.mid"], "empty.mid: contains no notes; choose another score"),
        (["--midi", "none.mid"], "none.mid: does not exist"),
        (["--midi", "midi"], "midi"),
        (["--class", "high", "--midi", "midi/0.mid"], "--class: this network has no classes"),
    ):
        result = run("generate", "--checkpoint", "run", *arguments, "refused.wav", cwd=scores)
        assert_one_line_error(result, words)
    assert not (scores / "refused.wav").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--midi-dir", "none"], "is not a folder"),
        (["--midi-dir", "midi", "--augment-speed", "0.1"], "--augment-speed: changes pitches"),
        (["--midi-dir", "empty"], "no score for 4 of 4 recording(s)"),
        (["--features", "score"], "--midi-dir DIR go together"),
        (["--features", "mel", "--midi-dir", "midi"], "go together"),
        (["--hop", "40"], "--hop: says how frames are read"),
        (["--classes", "folders"], "is in no subfolder"),
        (["--features", "mel", "--fmax", "9000"], "half the sample rate"),
    ],
)
def test_what_training_refuses(scores, arguments, words):
    (scores / "empty").mkdir(exist_ok=True)
    result = run(
        "train", "--audio-dir", "audio", "--out-dir", "refused", *arguments, *NETWORK_FLAGS, cwd=scores
    )
    assert_one_line_error(result, words)
    assert not (scores / "refused").exists()
