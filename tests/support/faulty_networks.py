"""Networks that fall into silence, noise or a cycle at random."""

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


def troubled(ending: int | None, chance: float = 1 / 48000, lasting: float = 1e-6) -> Generator:
    """A network that swings loudly or softly, and now and then falls into silence, noise or a cycle.

    `ending` is the class through which it falls; `lasting` the chance to come out again.
    """
    chances = np.zeros((CLASSES, CLASSES))
    for pair, change in ((LOUD, SOFT), (SOFT, LOUD)):
        for one, other in (pair, pair[::-1]):
            chances[one, other], chances[one, one], chances[one, change[0]] = 0.02, 0.98, 1 / 1000
            if ending is not None:
                chances[one, ending] = chance
    chances[SILENT, SILENT] = 1
    for each in NOISE:
        chances[each, list(NOISE)] = 1 / len(NOISE)
    for each, after in zip(CYCLE, CYCLE[1:] + CYCLE[:1], strict=True):
        chances[each, after] = 1
    for each in (SILENT, *NOISE, *CYCLE):
        chances[each, LOUD[0]] += lasting
    # The class of silence before a stream.
    chances[8, LOUD[0]] = 1
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(chances), NEVER)
    return Generator(chain_model(logits.tolist(), sample_rate=RATE), threads=1)


def begun(generator: Generator, batch: int = 1, seed: int = 0, first: int = 0):
    """Streams that sound already."""
    return generator.prime(torch.tensor([LOUD[0]] * 4), seed).fan_out(batch, first)
