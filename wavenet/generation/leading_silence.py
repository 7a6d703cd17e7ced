"""Where a stream's first sound is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable

import torch

from wavenet.engine.state import GeneratorState

LISTEN_SECONDS = 0.25
LISTEN_CHUNKS = 8
SILENCE_DB = -45.0
"""A chunk of LISTEN_SECONDS / LISTEN_CHUNKS is silent if its level is this far below full scale."""


def first_sounds(
    ahead_of: Callable[[GeneratorState, int], Iterable[torch.Tensor]],
    decode: Callable[[torch.Tensor], torch.Tensor],
    state: GeneratorState,
    sample_rate: int,
) -> GeneratorState:
    """Return streams as they stand just before their first sound; see `Generator.skip_silence`.

    Parameters
    ----------
    ahead_of : callable
        Given a state, which it changes, and a number of samples: yields what is drawn in chunks of so many,
        as far as is to be looked.
    decode : callable
        From classes to amplitudes.
    state : GeneratorState
        Left as it is.
    sample_rate : int
        In Hz.
    """
    chunk = max(1, round(LISTEN_SECONDS * sample_rate / LISTEN_CHUNKS))
    streams = []
    for row in range(state.batch):
        beginning = state.select([row])
        ahead, before = beginning.clone(), beginning
        heard: deque[tuple[GeneratorState, bool]] = deque(maxlen=LISTEN_CHUNKS)
        for samples in ahead_of(ahead, chunk):
            heard.append((before, _level(decode(samples)) > SILENCE_DB))
            if len(heard) == LISTEN_CHUNKS and _sounds([loud for _, loud in heard]):
                beginning = heard[0][0]
                break
            before = ahead.clone()
        streams.append(beginning)
    return GeneratorState.join(streams)


def _sounds(loud: list[bool]) -> bool:
    return loud[0] and 2 * sum(loud) >= len(loud)


def _level(audio: torch.Tensor) -> float:
    """Return the level of audio about its mean in dB, so that a constant offset is no sound."""
    return 10 * math.log10(float(audio.double().var(correction=0)) + 1e-20)
