"""The report of `wavenet-generate` on its takes: entropy, plots, regenerated passages, selected takes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavenet.cli.generate_job import Job
from wavenet.cli.generate_options import MAX_PLOT_SECONDS, numbered
from wavenet.engine.state import GeneratorState
from wavenet.errors import ConfigError
from wavenet.generation.best_of import BestOf
from wavenet.generation.likelihood import PERCENTILES, EntropyStatistics, LikelihoodTracker
from wavenet.generation.plots import draw_take
from wavenet.generation.session import TakeStream
from wavenet.utils.files import atomic_output, printable

MOST_SECONDS = 30
"""Seconds whose entropies are printed; --json contains all."""

MOST_TAKES = 8
"""Takes that are printed one by one."""


class TakeReport:
    """Follows takes while they are generated, as far as options require, and reports on them at the end.

    Parameters
    ----------
    job : Job
    state : GeneratorState
        Start of the streams, candidates included; copied.
    maker : TakeStream
        Generates these streams.
    """

    def __init__(self, job: Job, state: GeneratorState, maker: TakeStream):
        options = job.options
        self.job = job
        self.maker = maker
        self.first = int(state.stream[0])
        seconds = (job.session.steps or 0) / job.session.generator.config.sample_rate
        if options.plot is not None and seconds > MAX_PLOT_SECONDS:
            raise ConfigError(f"--plot: draws at most {MAX_PLOT_SECONDS:g} s, not {seconds:.0f} s; remove it")
        self._begun = state.clone() if options.plot is not None or options.entropy else None
        self._tracker: LikelihoodTracker | None = None
        self._audio: list[np.ndarray] = []
        self._entropy: list[np.ndarray] = []

    def add(self, chunk: torch.Tensor, audio: np.ndarray) -> None:
        """Add generated samples: classes and amplitudes, (takes, samples) each."""
        if self._begun is None or not chunk.shape[1]:
            return
        if self._tracker is None:
            # The streams are known only after the selection.
            begun = self._begun.select(self.maker.rows)
            self._tracker = LikelihoodTracker(
                self.job.session.generator, begun, self.job.session.start.provider
            )
        entropy = self._tracker.add(chunk)
        if self.job.options.plot is not None:
            self._audio.append(audio)
            self._entropy.append(entropy)

    def print(self, names: list[Path], samples: int) -> None:
        """Print the report on takes written to files (no names: a stream), and draw the plots."""
        options, console = self.job.options, self.job.console
        rate = self.job.session.generator.config.sample_rate
        shown = [printable(name) for name in names] or ["the take"]
        for line in self._regenerated(shown, rate):
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
        """Regenerated passages of the selected takes, with the number of the take."""
        supervised = self.maker.supervised if isinstance(self.maker, BestOf) else self.maker
        places = {row: take for take, row in enumerate(self.maker.rows)}
        return [(places[each.row], each) for each in supervised.rewinds if each.row in places]

    def _regenerated(self, shown: list[str], rate: int) -> list[str]:
        found = self._rewinds
        lines = []
        if found:
            counts = Counter(each.kind for _, each in found if each.regenerated)
            which = ", ".join(f"{kind} {count}" for kind, count in counts.items())
            takes = len({take for take, _ in found})
            total = sum(counts.values())
            text = "watchdog  went back " + ("once" if total == 1 else f"{total} times")
            text += f" ({which})" if which else ""
            lines.append(text + (f" in {takes} of {len(shown)} takes" if len(shown) > 1 else ""))
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
        classes = self.job.session.generator.config.quantization_channels
        for path, *row in zip(numbered(self.job.options.plot, takes), audio, entropy, strict=True):
            draw_take(path, row[0], rate, row[1], classes)

    def _record(self, shown: list[str], seconds: float, statistics: list[EntropyStatistics]) -> None:
        rate = self.job.session.generator.config.sample_rate
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
        text = " ".join(f"{bits:.2f}" for bits in seconds[:MOST_SECONDS])
        lines.append(f"per second  {text}" + (" ..." if len(seconds) > MOST_SECONDS else ""))
    if len(statistics) > MOST_TAKES:
        lines.append(f"and {len(statistics) - MOST_TAKES} takes more: --json FILE has all")
    return lines


def write_json(job: Job, directory: Path) -> None:
    """Write the records of all takes of a job."""
    options, backend = job.options, job.session.generator.backend
    values = {
        "checkpoint": printable(directory),
        "sample_rate": job.session.generator.config.sample_rate,
        "backend": backend.name,
        "precision": backend.precision,
        "seed": job.seed,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "typical_bits": job.session.typical_bits,
        "takes": job.records,
    }
    with atomic_output(options.json) as stream:
        stream.write((json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
