"""How `wavenet-generate` makes takes: watched or not, the best of several, as its flags say."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from wavenet.cli.generate_job import Beginning
from wavenet.engine.state import GeneratorState, Sampling
from wavenet.generation.best_of import BestOf
from wavenet.generation.conditioned import Source
from wavenet.generation.generator import Generator
from wavenet.generation.likelihood import predictions
from wavenet.generation.watchdog import Watched, judged_by
from wavenet.models.serialization import read_json
from wavenet.training.checkpoint import PROGRESS_FILE
from wavenet.utils.console import Console

Maker = Watched | BestOf

TRIAL = 512
"""Samples between two looks at the clock."""


@dataclass
class Job:
    """What a command has been asked to make.

    Attributes
    ----------
    beginning : Beginning
    told : Source or None
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
    told: Source | None
    steps: int | None
    typical: float | None
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sampling(self) -> Sampling:
        """How samples are drawn."""
        return Sampling(self.options.temperature, self.options.top_k, self.options.top_p)

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
        judged = judged_by(self.told, generator.config.sample_rate, self.beginning.told_from)
        watched = Watched(
            generator,
            state,
            self.steps,
            self.sampling,
            steering,
            None if options.no_watchdog else judged,
            live and not options.best_of,
            options.save_state is not None,
        )
        if not options.best_of:
            return watched
        unconditional = self.told is None or self.told.constant
        return BestOf(
            generator, state, watched, options.best_of, self.typical, steering, listen=unconditional
        )

    def trial(self, state: GeneratorState) -> int:
        """Make a little of some streams, as it is going to be made, and return how many samples."""
        before = state.clone()
        steering, sampling = self.beginning.steering, self.sampling
        options = (sampling.temperature, sampling.top_k, sampling.top_p)
        chunks = list(self.generator.stream(state, TRIAL, None, *options, steering))
        if self.options.entropy or self.options.plot:
            predictions(self.generator, before, torch.cat(chunks, dim=1), steering)
        return TRIAL


def typical_bits(directory: Path, beginning: Beginning, told: Source | None) -> float | None:
    """Return what the network needed for held-out recordings; None where that is no measure for a take."""
    file = directory / PROGRESS_FILE
    if told is not None or not beginning.fresh or not file.is_file():
        return None
    notes = read_json(file)
    bits = notes.get("validation_bits") if isinstance(notes, dict) else None
    return float(bits) if isinstance(bits, (int, float)) and 0 < bits < 64 else None
