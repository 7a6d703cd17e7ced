"""Networks learn to follow what they are told: scores and spectra that nobody can guess."""

import numpy as np
import pytest
import torch
from support.following import heard, tones, trained

from wavenet.audio.mulaw import decode, encode
from wavenet.conditioning.base import FrameSource
from wavenet.conditioning.mel import MelSource
from wavenet.conditioning.score import ScoreSource
from wavenet.config import ConditioningConfig
from wavenet.generation.generator import Generator
from wavenet.music.score import Score

pytestmark = pytest.mark.slow

KINDS = {
    "score": ConditioningConfig(features="score", hop=20),
    "mel": ConditioningConfig(features="mel", hop=20, n_mels=16, n_fft=64, fmin=100.0, fmax=2000.0),
}


@pytest.fixture(scope="module")
def untold_bits(tmp_path_factory):
    """What a network that is told nothing needs for the same samples, after the same training."""
    return trained(tmp_path_factory.mktemp("untold"), None)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_follows(kind, untold_bits, tmp_path):
    model, bits = trained(tmp_path, KINDS[kind])
    # There is most to know where a tone begins: when, which, how loud.
    assert bits < untold_bits - 0.03
    generator = Generator(model, threads=1)
    audio, score = tones(99, 3.0)

    def of(audio: np.ndarray, score: Score) -> FrameSource:
        if kind == "score":
            return ScoreSource(model.config, score)
        return MelSource(model.config, decode(encode(torch.from_numpy(audio.copy()), 64), 64).numpy())

    def right(source: FrameSource) -> float:
        steering = generator.steering(source)
        state = generator.start(seed=1, gate_bias=steering)
        take = generator.generate(len(audio), state, gate_bias=steering)
        return float((heard(generator.decode(take[0]).numpy(), score) == score.pitch).mean())

    assert (heard(audio, score) == score.pitch).mean() > 0.95
    assert right(of(audio, score)) > 0.85
    # Told something else, it plays that: one note in four is right by chance.
    assert right(of(audio[::-1], score.shuffled(0))) < 0.45
