"""`wavenet-generate` chooses, mends, continues, shows and plays: run in this process, with torch loaded."""

from __future__ import annotations

import _thread
import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import soundfile
import torch
from support.audio_device import ManualDevice, PollingDevice
from support.commands import CONFIG, chord, make_checkpoint
from support.conditioned import config, network
from support.faulty_networks import SILENT, faulty_generator
from support.trainers import write_record

from wavenet.audio.wav import write_wav
from wavenet.cli import generate_output
from wavenet.cli.generate import main
from wavenet.engine.state import GeneratorState
from wavenet.errors import AudioError
from wavenet.generation.generator import Generator
from wavenet.generation.likelihood import predictions
from wavenet.generation.saved_state import save_state
from wavenet.models.serialization import serialized


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a checkpoint where the command looks for one, and others by name."""
    folder = tmp_path_factory.mktemp("home")
    make_checkpoint(folder / "checkpoints" / "step-00000001")
    make_checkpoint(folder / "other", dataclasses.replace(CONFIG, layers=5))
    write_wav(folder / "primer.wav", chord(1.0), 4000)
    faulty_generator(SILENT, chance=1 / 30000).model.save_pretrained(folder / "troubled")
    network(config("class")).save_pretrained(folder / "classes")
    network(config("mel")).save_pretrained(folder / "mel")
    return folder


@pytest.fixture
def generate(home, monkeypatch, capsysbinary):
    """Run the command; return exit code, standard output, and errors as text."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))

    def run(*arguments):
        try:
            code = main(
                [os.fspath(each) if isinstance(each, os.PathLike) else str(each) for each in arguments]
            )
        except SystemExit as error:
            code = error.code
        captured = capsysbinary.readouterr()
        return code, captured.out, captured.err.decode()

    return run


def audio(path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


# -- going on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["checkpoints", "troubled"])
def test_one_second_and_three_more_are_four(generate, home, network):
    common = ("--checkpoint", network, "--force", "--threads", 1)
    assert generate(*common, "--seconds", 4, "--seed", 6, "four.wav")[0] == 0
    code, _, told = generate(*common, "--seconds", 1, "--seed", 6, "--save-state", "one.state", "one.wav")
    assert code == 0 and "state saved in one.state" in told
    code, _, told = generate(*common, "--seconds", 3, "--from-state", "one.state", "three.wav")
    assert code == 0 and "seed 6" in told
    parts = [audio(home / "one.wav"), audio(home / "three.wav")]
    assert np.array_equal(np.concatenate(parts), audio(home / "four.wav"))


def test_branches(generate, home):
    start = ("--seconds", 0.3, "--force")
    generate(*start, "--seed", 6, "--save-state", "branch.state", "trunk.wav")
    generate(*start, "--from-state", "branch.state", "on.wav")
    generate(*start, "--from-state", "branch.state", "--seed", 7, "away.wav")
    generate(*start, "--from-state", "branch.state", "--batch", 3, "twig.wav")
    twigs = [audio(home / f"twig-{number}.wav") for number in range(3)]
    assert np.array_equal(twigs[0], audio(home / "on.wav"))
    assert len({each.tobytes() for each in [*twigs, audio(home / "away.wav")]}) == 4


def test_several_takes_go_on_together(generate, home):
    common = ("--batch", 2, "--force")
    generate(*common, "--seconds", 0.4, "--seed", 2, "whole.wav")
    generate(*common, "--seconds", 0.1, "--seed", 2, "--save-state", "two.state", "begun.wav")
    generate(*common, "--seconds", 0.3, "--from-state", "two.state", "ended.wav")
    for take in range(2):
        parts = [audio(home / f"{name}-{take}.wav") for name in ("begun", "ended")]
        assert np.array_equal(np.concatenate(parts), audio(home / f"whole-{take}.wav"))
    code, _, told = generate("--from-state", "two.state", "x.wav")
    assert code == 1 and "two.state: contains 2 takes; continue all of them with --batch 2" in told


def test_conditioning_continues_with_the_state(generate, home):
    told = ("--checkpoint", "classes", "--class", "0:cello 0.5:flute", "--force")
    generate(*told, "--seconds", 0.6, "--seed", 1, "glide.wav")
    generate(*told, "--seconds", 0.2, "--seed", 1, "--save-state", "glide.state", "glide-1.wav")
    generate(*told, "--seconds", 0.4, "--from-state", "glide.state", "glide-2.wav")
    parts = [audio(home / f"glide-{part}.wav") for part in (1, 2)]
    assert np.array_equal(np.concatenate(parts), audio(home / "glide.wav"))

    np.save(home / "frames.npy", np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32))
    told = ("--checkpoint", "mel", "--features", "frames.npy", "--force", "--seed", 1)
    for primer in ((), ("--prime", "primer.wav")):
        generate(*told, *primer, "frames.wav")
        generate(*told, *primer, "--seconds", 0.1, "--save-state", "frames.state", "frames-1.wav")
        code, _, errors = generate(*told, "--from-state", "frames.state", "frames-2.wav")
        assert code == 0, errors
        # Without --seconds it ends where the frames do.
        parts = [audio(home / f"frames-{part}.wav") for part in (1, 2)]
        assert len(np.concatenate(parts)) == 40 * 37
        assert np.array_equal(np.concatenate(parts), audio(home / "frames.wav"))
    generate(*told, "--seconds", 1, "--save-state", "over.state", "over.wav")
    code, _, errors = generate(*told, "--from-state", "over.state", "x.wav")
    assert code == 1 and "the conditioning ended 0.6 s earlier; continue with --seconds" in errors


def test_states_that_cannot_be_continued(generate, home):
    generator = Generator.from_pretrained(home / "checkpoints", threads=1)
    state = generator.start()
    save_state(home / "good.state", generator, state)
    whole = (home / "good.state").read_bytes()
    (home / "torn.state").write_bytes(whole[:-100])
    (home / "text.state").write_text("no state")
    save_state(home / "foreign.state", Generator.from_pretrained(home / "other", threads=1), state)
    state.save(home / "later.state", {"wavenet_state": json.dumps({"version": 9})})
    state.save(home / "noted.state", {"wavenet_state": "{"})
    broken = state.clone()
    broken.queues[0, 0, 0] = float("nan")
    save_state(home / "nan.state", generator, broken)
    narrow = dataclasses.replace(state, queues=state.queues[:, :-1])
    narrow.save(home / "narrow.state")
    tensors = {"queues": state.queues, "position": state.position, "last_sample": state.last_sample}
    (home / "less.state").write_bytes(serialized(tensors))
    for name, words in {
        "none.state": "none.state: does not exist; give a saved state",
        "checkpoints": "is not a file",
        "primer.wav": "is damaged",
        "torn.state": "is damaged",
        "text.state": "is damaged",
        "foreign.state": "is the state of another network",
        "later.state": "is a state of version 9, this release reads 1",
        "noted.state": "its metadata cannot be read",
        "nan.state": "contain NaN or infinity",
        "narrow.state": "the state belongs to another network",
        "less.state": "is not a generator's saved state",
    }.items():
        code, _, told = generate("--from-state", name, "x.wav")
        last = told.splitlines()[-1]
        assert code == 1 and name in last and words in last and "Traceback" not in told
    # A state saved by hand says nothing of its network, and serves if it fits.
    state.save(home / "plain.state")
    assert generate("--from-state", "plain.state", "--seconds", 0.1, "--force", "plain.wav")[0] == 0
    assert not (home / "x.wav").exists()


def test_a_failed_state_file_does_not_lose_the_take(generate, home, monkeypatch):
    def full(*_):
        raise AudioError("cannot write x.state: no space left on device; free space or choose another place")

    monkeypatch.setattr(generate_output, "save_state", full)
    code, _, told = generate("--seconds", 0.1, "--save-state", "x.state", "--force", "kept.wav")
    assert code == 1 and "no space left" in told and len(audio(home / "kept.wav")) == 400


# -- mending and choosing ------------------------------------------------------------------------------


def test_the_watchdog_reports_and_can_be_turned_off(generate, home):
    common = ("--checkpoint", "troubled", "--seconds", 12, "--batch", 4, "--seed", 2, "--force")
    code, _, told = generate(*common, "--json", "mended.json", "mended.wav")
    assert code == 0 and "watchdog  went back" in told and "(silence" in told and "of 4 takes" in told
    records = json.loads((home / "mended.json").read_text())["takes"]
    assert [each["stream"] for each in records] == [0, 1, 2, 3]
    assert sum(len(each["rewinds"]) for each in records) > 0
    _, _, told = generate(*common, "--no-watchdog", "plain.wav")
    assert "watchdog" not in told
    for take, record in enumerate(records):
        same = np.array_equal(audio(home / f"mended-{take}.wav"), audio(home / f"plain-{take}.wav"))
        assert same is (not record["rewinds"])
        assert all(each["went_back"] for each in record["rewinds"])


def test_the_best_of_some_is_one_of_them(generate, home):
    common = ("--seconds", 0.5, "--seed", 4, "--force")
    code, _, told = generate(*common, "--best-of", 3, "--batch", 2, "--json", "best.json", "best.wav")
    assert code == 0 and told.count("best of 3  best-") == 2
    generate(*common, "--batch", 6, "all.wav")
    records = json.loads((home / "best.json").read_text())["takes"]
    for take, record in enumerate(records):
        number = record["stream"]
        assert number // 3 == take and f"number {number % 3}, " in told.splitlines()[-2 + take]
        assert np.array_equal(audio(home / f"best-{take}.wav"), audio(home / f"all-{number}.wav"))
    # The first take is the same alone, and in a folder.
    generate(*common, "--best-of", 3, "alone.wav")
    assert np.array_equal(audio(home / "alone.wav"), audio(home / "best-0.wav"))
    generate(*common, "--best-of", 3, "--batch", 2, "--out-dir", "best")
    assert np.array_equal(audio(home / "best" / "0001.wav"), audio(home / "best-1.wav"))


def test_typical_is_what_training_has_found(generate, home):
    directory = home / "checkpoints" / "step-00000001"
    write_record(directory, step=1, validation_bits=3.25)
    try:
        common = ("--seconds", 0.1, "--best-of", 2, "--force")
        assert "typical 3.250" in generate(*common, "typical.wav")[2]
        # After a primer another figure would be due.
        assert "typical 3.250" not in generate(*common, "--prime", "primer.wav", "typical.wav")[2]
    finally:
        (directory / "training.json").unlink()


# -- seeing --------------------------------------------------------------------------------------------


def test_entropy_is_reported_and_written(generate, home):
    code, _, told = generate(
        *("--seconds", 1.5, "--seed", 3, "--entropy", "--json", "entropy.json", "--force", "seen.wav")
    )
    assert code == 0 and "entropy  seen.wav: mean " in told
    (take,) = json.loads((home / "entropy.json").read_text())["takes"]
    generator = Generator.from_pretrained(home / "checkpoints", threads=1)
    samples = generator.encode(audio(home / "seen.wav").astype(np.float32) / 32767)[None]
    entropy, surprisal = predictions(generator, generator.start(seed=3), samples)
    assert take["entropy"]["mean"] == pytest.approx(float(entropy.mean()), abs=1e-3)
    assert take["entropy"]["bits_per_sample"] == pytest.approx(float(surprisal.mean()), abs=1e-3)
    assert len(take["entropy"]["per_second"]) == 2
    assert f"per second  {entropy[0, :4000].mean():.2f}" in told


def test_a_picture_for_each_take(generate, home):
    pytest.importorskip("matplotlib")
    arguments = ("--seconds", 0.3, "--batch", 2, "--plot", "seen.png", "--force", "drawn.wav")
    assert generate(*arguments)[0] == 0
    assert all((home / f"seen-{take}.png").read_bytes()[:4] == b"\x89PNG" for take in range(2))
    code, _, told = generate("--seconds", 0.1, "--batch", 2, "--plot", "seen.png", "fresh.wav")
    assert code == 1 and "--plot seen-0.png: exists" in told and not (home / "fresh-0.wav").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "x.txt", "x.wav"], "must end in .png, .pdf or .svg"),
        (["--plot", "nowhere/x.png", "x.wav"], "its folder does not exist"),
        (["--plot", "x.png", "--seconds", "601", "x.wav"], "at most 600 s"),
        (["--plot", "x.png", "--batch", "17", "x.wav"], "at most 16 takes"),
        (["--plot", "x.png", "--out-dir", "x"], "at most 16 takes"),
        (["--entropy", "--seconds", "0", "-"], "give it a length"),
        (["--json", "checkpoints", "x.wav"], "is a folder"),
        (["--save-state", "primer.wav", "x.wav"], "--save-state primer.wav: exists"),
        (["--save-state", "x.state", "--out-dir", "x"], "works with OUT"),
        (["--from-state", "x.state", "--prime", "primer.wav", "x.wav"], "give one of them"),
        (["--best-of", "0", "x.wav"], "must be from 1 to 1000"),
        (["--best-of", "2", "--seconds", "0", "-"], "give them a length"),
        (["--best-of", "100", "--seconds", "99999", "x.wav"], "generate fewer seconds"),
        (["--play", "--batch", "2", "x.wav"], "plays a single take"),
        (["--play", "--out-dir", "x"], "plays a single take"),
    ],
)
def test_refusals(generate, home, arguments, words):
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    # Standard output must not be taken for a terminal, nor for the test's.
    code, _, told = generate(*arguments)
    assert code == 1 and words in told.splitlines()[-1] and "Traceback" not in told
    assert not (home / "x.wav").exists() and not (home / "x").exists()


def test_without_matplotlib_the_extra_is_named(generate, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, told = generate("--plot", "x.png", "x.wav")
    assert code == 1 and told.endswith("matplotlib is not installed: pip install 'wavenet[plot]'\n")


# -- playing -------------------------------------------------------------------------------------------


@pytest.fixture
def speaker(monkeypatch):
    """A sound device that is not one."""
    sink = PollingDevice(count=200)
    monkeypatch.setattr("wavenet.audio.playback.Device", lambda rate=None: sink)
    monkeypatch.setattr(generate_output, "Device", lambda rate=None: sink)
    monkeypatch.setattr("wavenet.audio.playback.TRIAL_SECONDS", 0.02)
    return sink


def sounding(sink: PollingDevice) -> np.ndarray:
    return np.rint(np.concatenate(sink.played) * 32767).astype(np.int16)


def test_what_is_played_is_what_is_written(generate, home, speaker):
    code, _, told = generate("--play", "--seconds", 1, "--seed", 8, "--force", "played.wav")
    assert code == 0 and "this machine generates at " in told and speaker.stopped
    heard, written = sounding(speaker), audio(home / "played.wav")
    generate("--seconds", 1, "--seed", 8, "--no-watchdog", "--force", "unplayed.wav")
    assert len(written) == 4000 and "played.wav  1.00 s" in told
    # Gaps may have been heard, as the sink asks faster than anything is played.
    assert np.array_equal(heard[heard != 0], written[written != 0])


def test_playing_alone_writes_nothing(generate, home, speaker):
    before = set(home.iterdir())
    code, out, told = generate("--play", "--seconds", 0.5, "--best-of", 2)
    assert code == 0 and out == b"" and "played  0.50 s" in told and set(home.iterdir()) == before
    assert "playback starts when the best take has been selected" in told and len(sounding(speaker)) >= 2000


def test_an_interrupt_while_playing_keeps_the_audio(generate, home, speaker, monkeypatch):
    pull_of = ManualDevice.start
    pulls: list[int] = []

    def start(self, pull):
        def counted(count):
            pulls.append(count)
            if len(pulls) == 100:
                _thread.interrupt_main()
            return pull(count)

        pull_of(self, counted)

    monkeypatch.setattr(ManualDevice, "start", start)
    code, _, told = generate(
        *("--play", "--seconds", 9999, "--seed", 8, "--save-state", "left.state", "--force", "left.wav")
    )
    assert code == 130 and "interrupted: left.wav" in told and speaker.stopped
    written = audio(home / "left.wav")
    state = GeneratorState.load(home / "left.state")
    assert state.position.item() == len(written) > 0
    generator = Generator.from_pretrained(home / "checkpoints", threads=1)
    expected = generator.start(seed=8)
    generator.advance(expected, generator.encode(written.astype(np.float32) / 32767)[None])
    assert torch.equal(state.queues, expected.queues)


def test_the_speed_of_playback_is_reported_first(generate, home, speaker, monkeypatch):
    for times, words in (
        (8.0, "this machine generates at 8.00x real time"),
        (0.5, "generates at 0.50x real time; playback starts after 0.5 s"),
        (0.001, "generates at 0.00x real time; playback starts after 0.7 s"),
    ):
        speaker.pull, speaker.played = None, []
        speaker.done.clear()
        monkeypatch.setattr(
            generate_output, "real_time_factor", lambda make, rate, times=times: make() and times
        )
        code, _, told = generate("--play", "--seconds", 0.4)
        assert code == 0 and words in told


def test_without_a_library_or_a_device(generate, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _, told = generate("--play")
    assert code == 1 and told == (
        "wavenet-generate: error: --play: sounddevice is not installed: pip install 'wavenet[play]'\n"
    )
