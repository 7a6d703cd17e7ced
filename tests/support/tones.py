"""Recordings that cannot be predicted without their scores: short tones of random pitch, phase and level."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import torch

from support.datasets import prepare_dataset
from wavenet.audio.wav import write_wav
from wavenet.conditioning.segments import Conditions
from wavenet.config import ConditioningConfig, TrainingConfig, WaveNetConfig
from wavenet.data.dataset import DataConfig, Dataset
from wavenet.evaluation.scoring import bits_per_sample
from wavenet.models.wavenet import WaveNet
from wavenet.music.score import Score
from wavenet.training.trainer import Trainer
from wavenet.utils.console import Console

RATE = 4000
PITCHES = (64, 71, 77, 82)
"""330, 494, 698 and 932 Hz: none is an octave of another."""

NETWORK = WaveNetConfig(
    sample_rate=RATE, quantization_channels=64, layers=7, stacks=1, residual_channels=24,
    dilation_channels=24, skip_channels=48, head_channels=48,
)  # fmt: skip
TRAINING = TrainingConfig(
    steps=200, batch=8, segment=0.25, lr=0.008, warmup_steps=40, precision="fp32", validate_every=0,
    checkpoint_every=0, sample_every=0, ema_decay=0.98, silence_db=None,
)  # fmt: skip


def tones(seed: int, seconds: float, least: float = 0.01, most: float = 0.02) -> tuple[np.ndarray, Score]:
    """Return consecutive tones as audio and as a score."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(least, most, int(seconds / least))
    lengths = lengths[np.cumsum(lengths) < seconds]
    onset = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    pitch = rng.choice(PITCHES, len(onset))
    velocity = rng.integers(40, 128, len(onset))
    time = np.arange(round(onset[-1] + lengths[-1]) * RATE) / RATE
    note = np.searchsorted(onset, time, side="right") - 1
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    phase = rng.uniform(0, 2 * np.pi, len(onset))
    audio = velocity[note] / 200 * np.sin(2 * np.pi * hertz[note] * time + phase[note])
    audio += rng.normal(0, 0.004, len(time))
    return audio.astype(np.float32), Score(onset, onset + lengths, pitch, velocity)


def prepare_tones(home: Path, seconds: float = 60.0) -> tuple[Dataset, dict[str, Score]]:
    """Write a minute for training and some seconds for validation; return the dataset and the scores."""
    scores = {}
    for number in range(7):
        name = f"{number}.wav" if number < 6 else "held.wav"
        audio, scores[name] = tones(number, seconds / 6)
        folder = home / ("audio" if number < 6 else "held")
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / name, audio, RATE)
    data = prepare_dataset(
        home / "audio", home / "cache", NETWORK, DataConfig(silence_db=None), val_dir=home / "held"
    )
    return data, scores


def trained(home: Path, conditioning: ConditioningConfig | None) -> tuple[WaveNet, float]:
    """Return a network trained on the tones, and its bits per sample on the validation recording."""
    config = dataclasses.replace(NETWORK, conditioning=conditioning)
    data, scores = prepare_tones(home)
    if conditioning is not None:
        for clips in (data.train, data.validation):
            own = [scores[clip.name.rpartition("/")[2]] for clip in clips.clips]
            share = TRAINING.condition_dropout if clips is data.train else 0.0
            clips.conditions = Conditions(config, {"score": own}, share)
    console = Console(io.StringIO())
    trainer = Trainer(config, TRAINING, data, home / "run", torch.device("cpu"), {}, console)
    for _ in range(TRAINING.steps):
        trainer.step()
    windows = data.validation.windows(trainer.segment)
    return trainer.averaged, bits_per_sample(trainer.averaged, windows)


def strongest_pitches(audio: np.ndarray, score: Score) -> np.ndarray:
    """Return for each note the element of `PITCHES` with the most energy in the audio."""
    found = []
    hertz = 440 * 2 ** ((np.array(PITCHES) - 69) / 12)
    for onset, release in zip(score.onset, score.release, strict=True):
        # A network may play the previous note for some milliseconds more.
        note = audio[round((onset + 0.003) * RATE) : round(release * RATE)]
        wave = np.exp(-2j * np.pi * np.outer(hertz, np.arange(len(note))) / RATE)
        found.append(PITCHES[int(np.argmax(np.abs(wave @ (note * np.hanning(len(note) + 2)[1:-1]))))])
    return np.array(found)
