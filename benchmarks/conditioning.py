"""Measure what conditioning costs the sample loop, in time and memory: python conditioning.py [A B ...]

The same network generates with and without conditioning, alternating, one stream on one thread, with random
weights. The result is the ratio of the median rates; projecting the frames is included. Memory is the growth
of the process's peak over a minute of audio.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation import PRESETS, peak_memory

RATE = 16000
CHUNK = 2048
MEMORY_SECONDS = 60


def networks(name: str, hop: int, one_class: bool) -> tuple[Any, Any]:
    """Return two networks of the same shape: without conditioning, and with scores or two classes."""
    from wavenet.config import ConditioningConfig, WaveNetConfig
    from wavenet.models.wavenet import WaveNet

    plain = WaveNetConfig(sample_rate=RATE, **PRESETS[name])
    kind: dict[str, Any] = {"class_names": ("one", "other")} if one_class else {"features": "score"}
    conditioned = dataclasses.replace(plain, conditioning=ConditioningConfig(hop=hop, **kind))
    torch.manual_seed(0)
    without = WaveNet(plain)
    torch.manual_seed(0)
    with_frames = WaveNet(conditioned)
    torch.nn.init.normal_(with_frames.conditioner.projection.weight, std=0.01)
    return without, with_frames


def score(seconds: float) -> Any:
    """Return a score of eight notes a second."""
    from wavenet.music.score import Score

    onset = np.arange(0, seconds, 0.125)
    pitch = 48 + (7 * np.arange(len(onset))) % 36
    return Score(onset, onset + 0.4, pitch, np.full(len(onset), 80))


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one network and return its row."""
    from wavenet import Generator
    from wavenet.conditioning.classes import Classes
    from wavenet.conditioning.score import ScoreSource

    models = dict(zip(("plain", "conditioned"), networks(name, options.hop, options.one_class), strict=True))

    def source(config: Any) -> Any:
        return (
            Classes(config, [(0.0, {"one": 1.0})])
            if options.one_class
            else ScoreSource(config, score(3600.0))
        )

    def begin(kind: str) -> tuple[Any, Any, Any]:
        generator = Generator(models[kind], options.backend, threads=1, precision=options.precision)
        gate_bias = generator.gate_bias_provider(source(generator.config)) if kind == "conditioned" else None
        state = generator.start(gate_bias=gate_bias)
        generator.generate(CHUNK, state, gate_bias=gate_bias)
        return generator, gate_bias, state

    generator, gate_bias, state = begin("conditioned")
    before = peak_memory()
    for _ in generator.stream(state, MEMORY_SECONDS * RATE, gate_bias=gate_bias):
        pass
    grown = peak_memory() - before
    rates: dict[str, list[float]] = {kind: [] for kind in models}
    for _ in range(options.repeats):
        for kind in models:
            # New memory for every repeat: page placement decides how much of the weights the L2 cache holds,
            # which changes the rate by several percent for networks of about its size.
            generator, gate_bias, state = begin(kind)
            begun, done = time.perf_counter(), 0
            while time.perf_counter() - begun < options.seconds / options.repeats:
                generator.generate(CHUNK, state, gate_bias=gate_bias)
                done += CHUNK
            rates[kind].append(done / (time.perf_counter() - begun))
    plain, conditioned = (statistics.median(rates[kind]) for kind in ("plain", "conditioned"))
    return {
        "network": name,
        "backend": generator.backend.name,
        "precision": options.precision,
        "hop": options.hop,
        "samples_per_second": round(plain),
        "samples_per_second_conditioned": round(conditioned),
        "ratio": round(conditioned / plain, 3),
        "grown_over_60_seconds_mb": round(grown, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("presets", nargs="*", help=f"of {', '.join(PRESETS)} (default: A)")
    parser.add_argument("--hop", type=int, default=256, metavar="N", help="samples per frame (default: 256)")
    parser.add_argument(
        "--one-class", action="store_true", help="condition on one class, whose bias is constant"
    )
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or int8 (default: fp32)")
    parser.add_argument("--backend", default="auto", help="(default: auto)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="X", help="seconds of measuring each kind"
    )
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="turns (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.presets if name not in PRESETS]
    if unknown:
        print(f"conditioning: no network {unknown[0]!r}: choose from {', '.join(PRESETS)}", file=sys.stderr)
        return 1
    rows = [measure(name, options) for name in options.presets or ["A"]]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
