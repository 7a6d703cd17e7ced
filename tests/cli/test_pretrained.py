"""The network that comes with the package: it is there, it plays at once, and it plays what it is told."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.commands import assert_one_line_error, run

import wavenet
from wavenet.audio.faults import find_faults
from wavenet.conditioning.score import ScoreSource, Tunes
from wavenet.models import locate
from wavenet.models.serialization import WEIGHTS_FILE, read_config
from wavenet.music.rule_composer import compose, score_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TAKES, SECONDS = 10, 10


def test_it_is_small_and_names_its_source():
    assert (locate.SHIPPED / WEIGHTS_FILE).stat().st_size <= 6_000_000
    config = read_config(locate.SHIPPED)
    assert config.sample_rate == 16000 and config.conditioning is not None
    assert config.conditioning.features == "score"
    card = (locate.SHIPPED / "README.md").read_text(encoding="utf-8")
    for word in ("public domain", "FluidR3", "bits per sample", "steps", "Limits"):
        assert word in card, word
    notice = (locate.SHIPPED / "NOTICE").read_text(encoding="utf-8")
    assert "Mutopia" in notice
    assert "Permission is hereby granted" in (locate.SHIPPED / "FluidR3_GM-LICENCE.txt").read_text()


def test_a_command_in_an_empty_folder_plays(tmp_path):
    result = run("generate", "--seconds", "0.5", "--seed", "2", "out.wav", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "using the piano that ships with wavenet" in result.stderr
    audio, rate = soundfile.read(tmp_path / "out.wav")
    assert len(audio) == rate // 2 and np.abs(audio).max() > 0.01
    named = run("generate", "--checkpoint", "piano", "--seconds", "0.5", "--seed", "2", "b.wav", cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "out.wav").read_bytes()


@pytest.mark.slow
def test_training_starts_from_it_and_names_it(tmp_path):
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 0.1, 16000)
        soundfile.write(tmp_path / f"{number}.wav", noise, 16000)
    more = [
        "--steps",
        "1",
        "--batch",
        "1",
        "--segment",
        "0.1",
        "--validate-every",
        "0",
        "--sample-every",
        "0",
    ]
    flags = ["--audio-dir", str(tmp_path), "--init-from", "piano", "--features", "none", *more]
    result = run("train", *flags, "--out-dir", "mine", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_config(locate.find(tmp_path / "mine")).conditioning is None
    assert json.loads((tmp_path / "mine" / "effective.json").read_text())["init_from"] == "piano"


def test_a_run_is_preferred_and_damage_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate.default_checkpoint() == locate.SHIPPED
    Path("checkpoints/samples").mkdir(parents=True)
    assert locate.default_checkpoint() == locate.SHIPPED
    step = Path("checkpoints/step-00000001")
    wavenet.WaveNet(wavenet.WaveNetConfig(layers=2, stacks=1)).save_pretrained(step)
    assert locate.default_checkpoint() == step
    (step / WEIGHTS_FILE).unlink()
    assert_one_line_error(run("generate", "x.wav", cwd=tmp_path), "contains no checkpoint")


def test_half_precision_is_read_as_single(tmp_path):
    torch.manual_seed(0)
    model = wavenet.WaveNet(wavenet.WaveNetConfig(layers=2, stacks=1))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", half=True)
    sizes = [(tmp_path / name / WEIGHTS_FILE).stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.52 * sizes[0]
    found = wavenet.WaveNet.from_pretrained(tmp_path / "half").state_dict()
    for name, value in model.state_dict().items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], value.half().float())
    with torch.no_grad():
        model.head2.bias[0] = 1e5
    with pytest.raises(wavenet.errors.ConfigError, match=r"head2.bias.*float16"):
        model.save_pretrained(tmp_path / "large", half=True)
    assert not (tmp_path / "large").exists()


@pytest.fixture(scope="module")
def generator():
    return wavenet.Generator.from_pretrained(locate.SHIPPED)


@pytest.mark.slow
def test_it_plays_the_notes_of_a_score(generator):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        transcription = importlib.import_module("transcription")
    finally:
        sys.path.remove(str(BENCHMARKS))
    rate = generator.config.sample_rate
    own, other = [], []
    for seed in (1, 2, 3):
        score = score_of(compose(seed, 8))
        steering = generator.gate_bias_provider(ScoreSource(generator.config, score))
        state = generator.start(seed=seed, gate_bias=steering)
        samples = generator.generate(10 * rate, state, gate_bias=steering)
        audio = generator.decode(samples[0]).numpy()
        own.append(transcription.check(audio, rate, score)["own"])
        other.append(transcription.check(audio, rate, score.shuffled(0))["own"])
    assert np.mean(own) > 0.75 and np.mean(other) < 0.6


@pytest.mark.slow
def test_ten_takes_neither_fall_silent_nor_break(generator):
    rate = generator.config.sample_rate
    for seed in range(TAKES):
        steering = generator.gate_bias_provider(Tunes(generator.config, seed))
        state = generator.start(seed=seed, gate_bias=steering)
        samples = generator.generate(SECONDS * rate, state, gate_bias=steering)
        assert not find_faults(generator.decode(samples[0]).numpy(), rate), seed
