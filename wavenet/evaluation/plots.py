"""Bar charts of evaluation results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavenet.utils.figures import saved_figure

BASELINES = ("uniform", "unigram", "linear prediction")
"""Names of the scores that are not of a network."""


def draw_scores(path: Path, scores: Sequence[tuple[str, float, tuple[float, float] | None]]) -> None:
    """Draw bits per sample, with an interval where there is one, as bars from top to bottom.

    Errors are those of `saved_figure`.
    """
    with saved_figure(path, (8, 1.2 + 0.45 * len(scores))) as figure:
        _bars(figure.subplots(), scores)


def _bars(axes: Any, scores: Sequence[tuple[str, float, tuple[float, float] | None]]) -> None:
    names, bits = [name for name, _, _ in scores], [value for _, value, _ in scores]
    colors = ["tab:gray" if name in BASELINES else "tab:blue" for name in names]
    bars = axes.barh(range(len(names)), bits, color=colors, tick_label=names)
    axes.bar_label(bars, [f"{value:.3f}" for value in bits], padding=18)
    for place, (_, value, interval) in enumerate(scores):
        if interval is not None:
            spread = [[value - interval[0]], [interval[1] - value]]
            axes.errorbar(value, place, xerr=spread, color="black", capsize=3)
    axes.invert_yaxis()
    most = max([*bits, *(interval[1] for _, _, interval in scores if interval)])
    axes.set(xlabel="bits per sample (bars: 95 % interval over recordings)", xlim=(0, 1.2 * most))
