"""Networks that at random enter silence, noise or a cycle."""

from __future__ import annotations

import numpy as np
import torch

from support.engines import chain_model
from wavenet.audio import faults
from wavenet.generation.generator import Generator

RATE = 4000
BLOCK = faults.block_samples(RATE)
CLASSES = 16
LOUD = (1, 14)
SOFT = (5, 10)
SILENT = 7
NOISE = (0, 3, 4, 11, 12, 15)
CYCLE = (2, 13, 6, 9)
NEVER = -60.0


def faulty_generator(fault: int | None, chance: float = 1 / 48000, recovery: float = 1e-6) -> Generator:
    """Return a network that oscillates loudly or softly, and enters silence, noise or a cycle at random.

    `fault` is the class through which it enters, `chance` the probability of each step to do so, and
    `recovery` the probability of each faulty step to leave.
    """
    chances = np.zeros((CLASSES, CLASSES))
    for pair, change in ((LOUD, SOFT), (SOFT, LOUD)):
        for one, other in (pair, pair[::-1]):
            chances[one, other], chances[one, one], chances[one, change[0]] = 0.02, 0.98, 1 / 1000
            if fault is not None:
                chances[one, fault] = chance
    chances[SILENT, SILENT] = 1
    for each in NOISE:
        chances[each, list(NOISE)] = 1 / len(NOISE)
    for each, after in zip(CYCLE, CYCLE[1:] + CYCLE[:1], strict=True):
        chances[each, after] = 1
    for each in (SILENT, *NOISE, *CYCLE):
        chances[each, LOUD[0]] += recovery
    # The class of the silence before a stream.
    chances[8, LOUD[0]] = 1
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(chances), NEVER)
    return Generator(chain_model(logits.tolist(), sample_rate=RATE), threads=1)


def sounding_state(generator: Generator, batch: int = 1, seed: int = 0, first: int = 0):
    """Return streams that start in the oscillation."""
    return generator.prime(torch.tensor([LOUD[0]] * 4), seed).fan_out(batch, first)
