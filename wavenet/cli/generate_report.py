"""What `wavenet-generate` tells of its takes: entropy, pictures, what was taken back, what was chosen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavenet.cli.generate_options import MAX_PLOT_SECONDS, numbered
from wavenet.engine.state import GeneratorState
from wavenet.errors import ConfigError
from wavenet.generation.best_of import BestOf
from wavenet.generation.likelihood import PERCENTILES, EntropyStatistics, LikelihoodTracker
from wavenet.generation.plots import draw_take
from wavenet.generation.session import Job, Maker
from wavenet.utils.files import atomic_output, printable

MOST_SECONDS = 30
"""Seconds whose entropies are told one by one; --json has all."""

MOST_TAKES = 8
"""Takes told of one by one."""


class Look:
    """Goes behind takes while they are made, if flags ask for it, and tells of them at the end.

    Parameters
    ----------
    job : Job
    state : GeneratorState
        Where the streams begin, candidates included; copied.
    maker : Maker
        Of these streams.
    """

    def __init__(self, job: Job, state: GeneratorState, maker: Maker):
        options = job.options
        self.job = job
        self.maker = maker
        self.first = int(state.stream[0])
        seconds = (job.steps or 0) / job.generator.config.sample_rate
        if options.plot is not None and seconds > MAX_PLOT_SECONDS:
            raise ConfigError(f"--plot: draws up to {MAX_PLOT_SECONDS:g} s, not {seconds:.0f}; leave it out")
        self._begun = state.clone() if options.plot is not None or options.entropy else None
        self._tracker: LikelihoodTracker | None = None
        self._audio: list[np.ndarray] = []
        self._entropy: list[np.ndarray] = []

    def add(self, chunk: torch.Tensor, audio: np.ndarray) -> None:
        """Take in what was given out, classes and amplitudes (takes, samples)."""
        if self._begun is None or not chunk.shape[1]:
            return
        if self._tracker is None:
            # Which streams these are is known only when they are chosen.
            begun = self._begun.select(self.maker.rows)
            self._tracker = LikelihoodTracker(self.job.generator, begun, self.job.beginning.steering)
        entropy = self._tracker.add(chunk)
        if self.job.options.plot is not None:
            self._audio.append(audio)
            self._entropy.append(entropy)

    def tell(self, names: list[Path], samples: int) -> None:
        """Say what is to be said of takes that went to files (none for a stream), and draw them."""
        options, console = self.job.options, self.job.console
        rate = self.job.generator.config.sample_rate
        shown = [printable(name) for name in names] or ["the take"]
        for line in self._taken_back(shown, rate):
            console.line(line)
        for line in self._chosen(shown):
            console.line(line)
        statistics = self._tracker.statistics if self._tracker is not None else []
        if options.entropy:
            for line in _entropies(shown, statistics):
                console.line(line)
        if options.plot is not None:
            self._draw(len(shown), rate)
        self._record(shown, samples / rate, statistics if options.entropy else [])

    @property
    def _rewinds(self) -> list[tuple[int, Any]]:
        """What was taken back of the takes given out, with the number of each."""
        supervised = self.maker.supervised if isinstance(self.maker, BestOf) else self.maker
        places = {row: take for take, row in enumerate(self.maker.rows)}
        return [(places[each.row], each) for each in supervised.rewinds if each.row in places]

    def _taken_back(self, shown: list[str], rate: int) -> list[str]:
        found = self._rewinds
        lines = []
        if found:
            counts = Counter(each.kind for _, each in found if each.regenerated)
            which = ", ".join(f"{kind} {count}" for kind, count in counts.items())
            takes = len({take for take, _ in found})
            total = sum(counts.values())
            told = "watchdog  went back " + ("once" if total == 1 else f"{total} times")
            told += f" ({which})" if which else ""
            lines.append(told + (f" in {takes} of {len(shown)} takes" if len(shown) > 1 else ""))
        lost = [(take, each) for take, each in found if not each.regenerated]
        for take, each in lost[:MOST_TAKES]:
            where = f"{shown[take]}: " if len(shown) > 1 else ""
            lines.append(
                f"watchdog  {where}{each.kind} about {each.at / rate:.1f} s stays: no attempt ended it"
            )
        return lines

    def _chosen(self, shown: list[str]) -> list[str]:
        if not isinstance(self.maker, BestOf):
            return []
        lines = []
        for name, choice in list(zip(shown, self.maker.choices, strict=True))[:MOST_TAKES]:
            lines.append(
                f"best of {self.maker.candidates}  {name}: number {choice.row}, {choice.bits:.3f} bits per "
                f"sample; typical {choice.typical:.3f}, all {choice.lowest:.3f} to {choice.highest:.3f}"
            )
        return lines

    def _draw(self, takes: int, rate: int) -> None:
        audio = np.concatenate(self._audio, axis=1) if self._audio else np.zeros((takes, 0))
        entropy = np.concatenate(self._entropy, axis=1) if self._entropy else np.zeros((takes, 0))
        classes = self.job.generator.config.quantization_channels
        for path, *row in zip(numbered(self.job.options.plot, takes), audio, entropy, strict=True):
            draw_take(path, row[0], rate, row[1], classes)

    def _record(self, shown: list[str], seconds: float, statistics: list[EntropyStatistics]) -> None:
        rate = self.job.generator.config.sample_rate
        rows = self.maker.rows
        for take, name in enumerate(shown):
            record: dict[str, Any] = {"file": name, "stream": self.first + rows[take], "seconds": seconds}
            record["rewinds"] = [
                {"kind": each.kind, "seconds": each.at / rate, "went_back": each.regenerated}
                for number, each in self._rewinds
                if number == take
            ]
            if isinstance(self.maker, BestOf):
                choice = self.maker.choices[take]
                record["best_of"] = {
                    "candidates": self.maker.candidates,
                    "bits_per_sample": choice.bits,
                    "typical": choice.typical,
                    "range": [choice.lowest, choice.highest],
                }
            if statistics:
                record["entropy"] = statistics[take].as_dict()
            self.job.records.append(record)


def _entropies(shown: list[str], statistics: list[EntropyStatistics]) -> list[str]:
    lines = []
    for name, account in list(zip(shown, statistics, strict=False))[:MOST_TAKES]:
        parts = ", ".join(f"{account.percentile(share):.2f} at {share} %" for share in PERCENTILES)
        lines.append(
            f"entropy  {name}: mean {account.mean:.3f} bits of {account.uniform:g}, {parts}; drawn at "
            f"{account.bits:.3f} bits per sample"
        )
        seconds = account.seconds()
        told = " ".join(f"{bits:.2f}" for bits in seconds[:MOST_SECONDS])
        lines.append(f"per second  {told}" + (" ..." if len(seconds) > MOST_SECONDS else ""))
    if len(statistics) > MOST_TAKES:
        lines.append(f"and {len(statistics) - MOST_TAKES} takes more: --json FILE has all")
    return lines


def write_json(job: Job, directory: Path) -> None:
    """Write what is known of all takes of a job."""
    options, backend = job.options, job.generator.backend
    values = {
        "checkpoint": printable(directory),
        "sample_rate": job.generator.config.sample_rate,
        "backend": backend.name,
        "precision": backend.precision,
        "seed": job.seed,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "typical_bits": job.typical,
        "takes": job.records,
    }
    with atomic_output(options.json) as stream:
        stream.write((json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
