"""One run of generation: streams from their start to their last sample."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from wavenet.conditioning.base import FrameSource
from wavenet.engine.state import GeneratorState
from wavenet.generation.best_of import BestOf
from wavenet.generation.conditioned import GateBiasProvider
from wavenet.generation.generator import Generator
from wavenet.generation.likelihood import predictions
from wavenet.generation.watchdog import SupervisedStream, fault_policy
from wavenet.utils.console import Console

Maker = SupervisedStream | BestOf


TRIAL = 512
"""Samples between two looks at the clock."""


@dataclass
class Job:
    """What a command has been asked to make.

    Attributes
    ----------
    beginning : Beginning
    told : FrameSource or None
        What the network is told.
    steps : int or None
        Samples of each take; None for ever.
    typical : float or None
        Bits per sample of held-out recordings, where they say what a take should have.
    records : list of dict
        What is known of the takes made so far, for --json.
    """

    generator: Generator
    options: Namespace
    console: Console
    seed: int
    beginning: Beginning
    told: FrameSource | None
    steps: int | None
    typical: float | None
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def candidates(self) -> int:
        """Streams made for each take."""
        return self.options.best_of or 1

    def streams(self, first: int, takes: int) -> GeneratorState:
        """Return the streams of some takes, of which the first has a number."""
        return self.beginning.streams(first * self.candidates, takes * self.candidates)

    def maker(self, state: GeneratorState, live: bool) -> Maker:
        """Return what makes takes of streams; live, somebody waits for their beginning."""
        generator, options, steering = self.generator, self.options, self.beginning.steering
        policy = fault_policy(self.told, generator.config.sample_rate)
        supervised = SupervisedStream(
            generator,
            state,
            self.steps,
            steering,
            None if options.no_watchdog else policy,
            live and not options.best_of,
            options.save_state is not None,
        )
        if not options.best_of:
            return supervised
        unconditional = self.told is None or self.told.constant
        return BestOf(generator, state, supervised, options.best_of, self.typical, steering, unconditional)

    def trial(self, state: GeneratorState) -> int:
        """Make a little of some streams, as it is going to be made, and return how many samples."""
        before = state.clone()
        steering = self.beginning.steering
        chunks = list(self.generator.stream(state, TRIAL, gate_bias=steering))
        if self.options.entropy or self.options.plot:
            predictions(self.generator, before, torch.cat(chunks, dim=1), steering)
        return TRIAL


@dataclass(frozen=True)
class Beginning:
    """Where takes begin.

    Attributes
    ----------
    streams : callable
        Given the number of the first stream and how many there are, returns them.
    steering : GateBiasProvider or None
        What they are told.
    told_from : int
        Position at which that begins.
    position : int
        At which the streams begin, what is skipped left out.
    fresh : bool
        Whether they begin in silence, with nothing to go on from.
    """

    streams: Callable[[int, int], GeneratorState]
    steering: GateBiasProvider | None
    told_from: int = 0
    position: int = 0
    fresh: bool = True
