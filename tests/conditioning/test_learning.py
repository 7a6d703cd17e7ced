"""Networks learn to follow scores and spectra that cannot be guessed."""

import numpy as np
import pytest
import torch
from support.tones import strongest_pitches, tones, trained

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
def unconditional_bits(tmp_path_factory):
    """Bits per sample of an unconditional network after the same training."""
    return trained(tmp_path_factory.mktemp("unconditional"), None)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_follows_its_conditioning(kind, unconditional_bits, tmp_path):
    model, bits = trained(tmp_path, KINDS[kind])
    # Conditioning helps most at the start of a tone: when, which pitch, how loud.
    assert bits < unconditional_bits - 0.03
    generator = Generator(model, threads=1)
    audio, score = tones(99, 3.0)

    def source_of(audio: np.ndarray, score: Score) -> FrameSource:
        if kind == "score":
            return ScoreSource(model.config, score)
        return MelSource(model.config, decode(encode(torch.from_numpy(audio.copy()), 64), 64).numpy())

    def correct(source: FrameSource) -> float:
        """Return the share of notes that are played with the pitch of the score."""
        steering = generator.gate_bias_provider(source)
        state = generator.start(seed=1, gate_bias=steering)
        take = generator.generate(len(audio), state, gate_bias=steering)
        return float((strongest_pitches(generator.decode(take[0]).numpy(), score) == score.pitch).mean())

    assert (strongest_pitches(audio, score) == score.pitch).mean() > 0.95
    assert correct(source_of(audio, score)) > 0.85
    # With other conditioning it plays other notes: one in four is correct by chance.
    assert correct(source_of(audio[::-1], score.shuffled(0))) < 0.45
