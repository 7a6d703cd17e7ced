"""Confidence intervals and entropy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

CONFIDENCE = 0.95

METHOD = (
    "ratio of total bits to total samples, over recordings taken as a random sample: linearised standard "
    "error and Student's t (Cochran 1977, section 2.11)"
)


def entropy(counts: Any) -> float:
    """Return the entropy in bits of a histogram (classes,); 0 if it is empty."""
    total = float(sum(counts))
    if total == 0:
        return 0.0
    return -sum(count / total * math.log2(count / total) for count in counts if count > 0)


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """Return a 95 % confidence interval of a ratio of totals, or None with fewer than two units.

    Parameters
    ----------
    sums, counts : arrays (units,)
        For each unit (a recording) the sum of what is averaged, and the number of samples; units without
        samples are ignored.
    """
    sums, counts = sums[counts > 0], counts[counts > 0]
    units = len(counts)
    if units < 2:
        return None
    # Imported here: it takes as long as most commands.
    from scipy import stats

    ratio = sums.sum() / counts.sum()
    spread = ((sums - ratio * counts) ** 2).sum() * units / (units - 1)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, units - 1))
    half = quantile * math.sqrt(spread) / float(counts.sum())
    return float(ratio - half), float(ratio + half)
