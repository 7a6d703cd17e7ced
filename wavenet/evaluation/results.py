"""Results of an evaluation: bits per sample by recording, with confidence intervals, as table or JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from wavenet.utils.files import printable
from wavenet.utils.statistics import CONFIDENCE, METHOD, entropy, ratio_interval


@dataclass(frozen=True)
class Sums:
    """Total bits of one scorer by recording, float64 (recordings,), and by window, float64 (windows,)."""

    recordings: np.ndarray
    windows: np.ndarray


@dataclass(frozen=True)
class Difference:
    """Difference of two scores on the same samples, in bits per sample.

    Attributes
    ----------
    bits : float
    interval : (float, float) or None
    units : str
        The paired units: "recordings", or "windows" if there is only one recording.
    """

    bits: float
    interval: tuple[float, float] | None
    units: str


@dataclass(frozen=True)
class Evaluation:
    """The scores of the same samples by one or several scorers.

    Attributes
    ----------
    names : list of str
        Names of the recordings.
    samples : int64 array (recordings,)
        Scored samples of each; 0 for recordings that a limited evaluation skips.
    window_samples : int64 array (windows,)
    histogram : int64 array (classes,)
        Number of scored samples of each class.
    sums : dict of Sums
        By the name of the scorer.
    """

    names: list[str]
    samples: np.ndarray
    window_samples: np.ndarray
    histogram: np.ndarray
    sums: dict[str, Sums]

    @property
    def total(self) -> int:
        """Samples scored."""
        return int(self.samples.sum())

    @property
    def uniform_bits(self) -> float:
        """Score of the uniform distribution."""
        return math.log2(len(self.histogram))

    @property
    def unigram_bits(self) -> float:
        """Entropy of the histogram of the scored samples."""
        return entropy(self.histogram.tolist())

    def bits(self, name: str) -> float:
        """Return a scorer's bits per sample: the mean over all samples."""
        return float(self.sums[name].recordings.sum()) / self.total

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % confidence interval over recordings, None if only one was scored."""
        return ratio_interval(self.sums[name].recordings, self.samples)

    def difference(self, name: str, other: str) -> Difference:
        """Return the bits of `name` minus those of `other`, paired by recording, or by window."""
        one, two = self.sums[name], self.sums[other]
        bits = self.bits(name) - self.bits(other)
        if np.count_nonzero(self.samples) > 1:
            interval = ratio_interval(one.recordings - two.recordings, self.samples)
            return Difference(bits, interval, "recordings")
        return Difference(bits, ratio_interval(one.windows - two.windows, self.window_samples), "windows")

    def scored(self) -> list[int]:
        """Return the indices of the recordings that were scored."""
        return np.flatnonzero(self.samples).tolist()

    def as_dict(self, networks: dict[str, dict[str, Any]], baseline: str, reference: str) -> dict[str, Any]:
        """Return everything as plain values for JSON.

        Parameters
        ----------
        networks : dict
            Names of the network's scores, with further values of each.
        baseline : str
            Name of the linear prediction's score.
        reference : str
            Name of the score with which the other networks are compared.
        """
        scores = []
        for name, facts in networks.items():
            score = {**facts, "name": name, **self._score(name)}
            if name != reference:
                found = self.difference(name, reference)
                score["difference"] = {
                    "to": reference,
                    "bits_per_sample": found.bits,
                    "interval": found.interval and list(found.interval),
                    "paired_over": found.units,
                }
            scores.append(score)
        return {
            "samples": self.total,
            "uniform_bits": self.uniform_bits,
            "unigram_bits": self.unigram_bits,
            "linear_prediction": self._score(baseline),
            "scores": scores,
            "confidence": CONFIDENCE,
            "interval_method": METHOD,
            "recordings": [
                {
                    "name": printable(self.names[index]),
                    "samples": int(self.samples[index]),
                    "bits_per_sample": {name: self._of(name, index) for name in networks},
                    "linear_prediction_bits": self._of(baseline, index),
                }
                for index in self.scored()
            ],
        }

    def _score(self, name: str) -> dict[str, Any]:
        interval = self.interval(name)
        return {"bits_per_sample": self.bits(name), "interval": interval and list(interval)}

    def _of(self, name: str, index: int) -> float:
        return float(self.sums[name].recordings[index]) / int(self.samples[index])

    def bars(self, networks: list[str], baseline: str) -> list[tuple[str, float, tuple[float, float] | None]]:
        """Return name, bits per sample and interval of every score, baselines first; see `as_dict`."""
        found = [(name, self.bits(name), self.interval(name)) for name in [baseline, *networks]]
        return [("uniform", self.uniform_bits, None), ("unigram", self.unigram_bits, None), *found]

    def table(self, networks: list[str], baseline: str, reference: str, rate: int) -> str:
        """Return the scores as a text table; parameters as in `as_dict`, and the sample rate in Hz."""
        columns_of = [*networks, baseline]
        width = max(map(len, [*columns_of, "unigram"])) + 2
        lines = [f"{'':{width}}bits per sample"]
        lines.append(f"{'uniform':{width}}{self.uniform_bits:8.4f}")
        lines.append(f"{'unigram':{width}}{self.unigram_bits:8.4f}")
        for name in [baseline, *networks]:
            interval = self.interval(name)
            lines.append(
                f"{name:{width}}{self.bits(name):8.4f}"
                + (f"   95 % interval {_range(interval, '.4f')}" if interval else "")
            )
        for name in networks:
            if name != reference:
                found = self.difference(name, reference)
                lines.append(
                    f"{name} beyond {reference}: {found.bits:+.5f}"
                    + (f"   95 % interval {_range(found.interval, '+.5f')}" if found.interval else "")
                    + f", paired over {found.units}"
                )
        count = len(self.scored())
        units = f"{count} recordings, taken as a random sample" if count > 1 else "none: only one recording"
        lines.append(f"intervals: {units}")
        lines.append("")
        columns = [f"{name:>{max(8, len(name))}}" for name in columns_of]
        names = [printable(self.names[index]) for index in self.scored()]
        widest = max(map(len, [*names, "recording"]))
        lines.append("  ".join([f"{'recording':{widest}}", f"{'seconds':>8}", *columns]))
        for index, name in zip(self.scored(), names, strict=True):
            cells = [
                f"{self._of(each, index):{len(column)}.4f}"
                for each, column in zip(columns_of, columns, strict=True)
            ]
            seconds = f"{int(self.samples[index]) / rate:8.1f}"
            lines.append("  ".join([f"{name:{widest}}", seconds, *cells]))
        return "\n".join(lines)


def _range(interval: tuple[float, float], form: str) -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"
