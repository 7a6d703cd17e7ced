"""Confidence intervals and entropy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def entropy(counts: Any) -> float:
    """Return the entropy in bits of a histogram (classes,); 0 if it is empty."""
    total = float(sum(counts))
    if total == 0:
        return 0.0
    return -sum(count / total * math.log2(count / total) for count in counts if count > 0)


CONFIDENCE = 0.95


METHOD = (
    "ratio of total bits to total samples, over recordings taken as a random choice: linearised standard "
    "error and Student's t (Cochran 1977, section 2.11)"
)


_MOST_FREEDOM = 10_000


def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the t beyond which Student's distribution leaves (1 - confidence) / 2 on either side.

    Found by bisection on the closed form for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 4).
    """
    freedom = min(freedom, _MOST_FREEDOM)
    # Of the angle arctan(t / sqrt(freedom)), which lies between 0 and a right angle.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _student_within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _student_within(angle: float, freedom: int) -> float:
    """Return the probability of |t| < sqrt(freedom) * tan(angle)."""
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for index in range(freedom // 2):
        total += term
        term *= square * (2 * index + 1 + odd) / (2 * index + 2 + odd)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """Return a 95 % confidence interval of a ratio of totals, or None with fewer than two units.

    Parameters
    ----------
    sums, counts : arrays (units,)
        Of each unit (a recording), what is averaged and over how much; units of no samples are left out.
    """
    sums, counts = sums[counts > 0], counts[counts > 0]
    units = len(counts)
    if units < 2:
        return None
    ratio = sums.sum() / counts.sum()
    spread = ((sums - ratio * counts) ** 2).sum() * units / (units - 1)
    half = student_quantile(units - 1) * math.sqrt(spread) / float(counts.sum())
    return float(ratio - half), float(ratio + half)
