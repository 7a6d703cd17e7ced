"""One run of generation: settings of takes, where their streams start, and the objects that generate them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from wavenet.conditioning.base import FrameSource
from wavenet.engine.state import GeneratorState
from wavenet.generation.best_of import BestOf
from wavenet.generation.conditioned import GateBiasProvider
from wavenet.generation.generator import Generator
from wavenet.generation.likelihood import predictions
from wavenet.generation.watchdog import SupervisedStream, fault_policy

TakeStream = SupervisedStream | BestOf

TRIAL_SAMPLES = 512
"""Samples generated to measure the real-time factor."""


@dataclass(frozen=True)
class TakeSettings:
    """Settings of takes besides their sampling, which is part of the state.

    Attributes
    ----------
    best_of : int or None
        Candidates per take, of which the most typical one is kept; None generates one stream per take.
    supervise : bool
        Whether faulty passages are regenerated.
    keep_state : bool
        Whether the state at the end of the takes will be asked for.
    entropy : bool
        Whether the entropy of the predictions is computed.
    """

    best_of: int | None = None
    supervise: bool = True
    keep_state: bool = False
    entropy: bool = False


@dataclass(frozen=True)
class StreamStart:
    """Where takes start.

    Attributes
    ----------
    streams : callable
        Called with the number of the first stream and the number of streams; returns their state.
    provider : GateBiasProvider or None
        The gate bias of the streams; None without conditioning.
    conditioning_start : int
        Position in samples at which frame 0 of the conditioning begins.
    position : int
        Position in samples at which the streams start, without skipped silence.
    from_silence : bool
        Whether the streams start from silence, without a primer or an earlier state.
    """

    streams: Callable[[int, int], GeneratorState]
    provider: GateBiasProvider | None
    conditioning_start: int = 0
    position: int = 0
    from_silence: bool = True


@dataclass(frozen=True)
class Session:
    """Everything that decides the audio of a run of takes.

    Attributes
    ----------
    generator : Generator
    settings : TakeSettings
    start : StreamStart
    source : FrameSource or None
        Frames of the conditioning.
    steps : int or None
        Samples of each take; None for endless takes.
    typical_bits : float or None
        Bits per sample of held-out recordings, if takes are comparable with them.
    """

    generator: Generator
    settings: TakeSettings
    start: StreamStart
    source: FrameSource | None
    steps: int | None
    typical_bits: float | None = None

    @property
    def candidates(self) -> int:
        """Streams per take."""
        return self.settings.best_of or 1

    def streams(self, first: int, takes: int) -> GeneratorState:
        """Return the streams of some takes, candidates included; `first` numbers the first take."""
        return self.start.streams(first * self.candidates, takes * self.candidates)

    def takes(self, state: GeneratorState, live: bool) -> TakeStream:
        """Return an iterator over the chunks of takes; `live` minimises the delay of the first chunk."""
        settings, provider = self.settings, self.start.provider
        policy = fault_policy(self.source, self.generator.config.sample_rate)
        supervised = SupervisedStream(
            self.generator,
            state,
            self.steps,
            provider,
            policy if settings.supervise else None,
            live and settings.best_of is None,
            settings.keep_state,
        )
        if settings.best_of is None:
            return supervised
        unconditional = self.source is None or self.source.constant
        return BestOf(
            self.generator,
            state,
            supervised,
            settings.best_of,
            self.typical_bits,
            provider,
            unconditional,
        )

    def trial(self, state: GeneratorState) -> int:
        """Generate `TRIAL_SAMPLES` samples as a take would, advance the state, and return their number."""
        before = state.clone()
        provider = self.start.provider
        chunks = list(self.generator.stream(state, TRIAL_SAMPLES, gate_bias=provider))
        if self.settings.entropy:
            predictions(self.generator, before, torch.cat(chunks, dim=1), provider)
        return TRIAL_SAMPLES
