"""Curves of a training run, drawn from its `metrics.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wavenet.errors import ConfigError
from wavenet.training import metrics
from wavenet.utils.figures import saved_figure
from wavenet.utils.files import cause

CURVES_FILE = "curves.png"

PANELS = (
    ("bits per sample", ("train_bits", "validation_bits", "final_validation_bits"), False),
    ("learning rate", ("lr",), False),
    ("gradient norm", ("gradient_norm",), True),
    ("samples per second", ("samples_per_second",), False),
)
"""Title, the keys drawn, and whether the scale is logarithmic."""

LABELS = {
    "train_bits": "training",
    "validation_bits": "validation",
    "final_validation_bits": "final",
    "unigram_bits": "unigram",
    "uniform_bits": "uniform",
}


def series(records: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a key has a value, and the values."""
    found = [(each["step"], each[key]) for each in records if isinstance(each.get(key), (int, float))]
    return [step for step, _ in found], [value for _, value in found]


def draw_curves(run: Path, to: Path | None = None) -> Path:
    """Draw a run's losses, learning rate, gradient norm and speed over its steps.

    Parameters
    ----------
    run : Path
        The run's directory.
    to : Path, optional
        The picture: png, pdf or svg; by default `curves.png` in the run's directory.

    Returns
    -------
    Path
        The picture.

    Raises
    ------
    ConfigError
        If there is nothing to draw, and as `saved_figure` does.
    AudioError
        If the picture cannot be written.
    """
    records = _records(run)
    to = to or run / CURVES_FILE
    with saved_figure(to, (11, 7)) as figure:
        for axes, (title, keys, logarithmic) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            for key in keys:
                steps, values = series(records, key)
                axes.plot(steps, values, "." if len(steps) == 1 else "-", label=LABELS.get(key, title))
            if title == PANELS[0][0]:
                _baselines(axes, records)
                axes.legend()
            if logarithmic:
                axes.set_yscale("log")
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
    return to


def _records(run: Path) -> list[dict[str, Any]]:
    path = run / metrics.METRICS_FILE
    try:
        records = metrics.read(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({cause(error)}); name a training run") from None
    if not any(series(records, key)[0] for _, keys, _ in PANELS for key in keys):
        raise ConfigError(f"{path}: contains nothing to draw yet")
    return records


def _baselines(axes: Any, records: list[dict[str, Any]]) -> None:
    """Draw the scores of a uniform and of a unigram model."""
    for key, style in (("unigram_bits", "--"), ("uniform_bits", ":")):
        _, values = series(records, key)
        if values:
            axes.axhline(values[-1], linestyle=style, color="gray", label=LABELS[key])
