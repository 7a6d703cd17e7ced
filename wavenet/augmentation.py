"""The same recordings, a little different each time that they are trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wavenet import mulaw

# The words that choose the segments begin at counter 0 of the same key; these lie far beyond any batch.
_COUNTER = (0, 0, 0, 1)


@dataclass(frozen=True)
class Augmentation:
    """Changes to training segments that leave a recording one that could have been made.

    Attributes
    ----------
    quantization_channels : int
        Number of classes.
    gain_db : float
        Each segment is made softer by an amount drawn uniformly from 0 to this many dB.
    polarity : bool
        Whether each segment is turned upside down at a chance of one half.
    """

    quantization_channels: int
    gain_db: float = 0.0
    polarity: bool = False

    def factors(self, step: int, rows: int, seed: int) -> np.ndarray:
        """Return the factor of each segment's amplitudes, float64 (rows,).

        It is the same whenever `step`, `seed` and the number of the row are, whatever else is asked for.
        """
        key = np.array([seed, step], dtype=np.uint64)
        words = np.random.Philox(key=key, counter=np.array(_COUNTER, dtype=np.uint64)).random_raw(2 * rows)
        # 53 bits are what a float64 holds exactly.
        share = (words[::2] >> np.uint64(11)).astype(np.float64) / 2.0**53
        factors = 10.0 ** (-self.gain_db * share / 20)
        if self.polarity:
            factors[words[1::2] >= np.uint64(2**63)] *= -1
        return factors

    def table(self, factor: float) -> np.ndarray:
        """Return the class that each class becomes, int64 (classes,): decoded, scaled, and encoded again."""
        amplitudes = mulaw.decode(np.arange(self.quantization_channels), self.quantization_channels)
        return mulaw.encode(amplitudes.astype(np.float64) * factor, self.quantization_channels)

    def apply(
        self, rows: list[tuple[np.ndarray, np.ndarray]], step: int, seed: int, first: int = 0
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return segments changed, each given as its classes and which of them are real samples.

        The silence between clips stays the class from which every stream begins. `first` is the number of the
        first row in the step.
        """
        factors = self.factors(step, first + len(rows), seed)[first:].tolist()
        return [
            (np.where(real, self.table(factor)[values], values), real)
            for (values, real), factor in zip(rows, factors, strict=True)
        ]
