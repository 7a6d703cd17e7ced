"""Finds the first sound of a stream."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable

import torch

from wavenet.engine.state import GeneratorState

SOUND_SECONDS = 0.25
"""A sound is loud in at least half of this time, and at its beginning."""

SOUND_CHUNKS = 8
LOUD_DB = -45.0
"""Level above which one of the chunks in `SOUND_SECONDS` is loud, relative to full scale."""


def first_sounds(
    draw: Callable[[GeneratorState, int], Iterable[torch.Tensor]],
    decode: Callable[[torch.Tensor], torch.Tensor],
    state: GeneratorState,
    sample_rate: int,
) -> GeneratorState:
    """Return streams as they are just before their first sound; see `Generator.skip_silence`.

    Parameters
    ----------
    draw : callable
        Given a state, which it changes, and a chunk length: yields the samples drawn in such chunks, up to
        the limit of the search.
    decode : callable
        From classes to amplitudes.
    state : GeneratorState
        Not changed.
    sample_rate : int
        In Hz.
    """
    chunk = max(1, round(SOUND_SECONDS * sample_rate / SOUND_CHUNKS))
    streams = []
    for row in range(state.batch):
        beginning = state.select([row])
        ahead, before = beginning.clone(), beginning
        recent: deque[tuple[GeneratorState, bool]] = deque(maxlen=SOUND_CHUNKS)
        for samples in draw(ahead, chunk):
            recent.append((before, _level(decode(samples)) > LOUD_DB))
            if len(recent) == SOUND_CHUNKS and _is_sound([loud for _, loud in recent]):
                beginning = recent[0][0]
                break
            before = ahead.clone()
        streams.append(beginning)
    return GeneratorState.join(streams)


def _is_sound(loud: list[bool]) -> bool:
    return loud[0] and 2 * sum(loud) >= len(loud)


def _level(audio: torch.Tensor) -> float:
    """Return the level of audio about its mean in dB, so that a constant offset is silent."""
    return 10 * math.log10(float(audio.double().var(correction=0)) + 1e-20)
