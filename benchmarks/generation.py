"""Measure generation: samples per second of each backend on random weights, beside real time.

Rates on a shared machine vary; compare figures of one run. Each figure is the median of several repeats.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any


def _shape(layers: int, stacks: int, kernel_size: int, width: int, skip: int, head: int) -> dict[str, int]:
    return {
        "layers": layers,
        "stacks": stacks,
        "kernel_size": kernel_size,
        "residual_channels": width,
        "dilation_channels": width,
        "skip_channels": skip,
        "head_channels": head,
    }


PRESETS = {
    "A": _shape(20, 2, 2, 64, 256, 256),
    "B": _shape(30, 3, 2, 64, 256, 256),
    "C": _shape(24, 4, 3, 128, 128, 256),
    "D": _shape(40, 4, 2, 128, 512, 512),
    "small": _shape(20, 2, 2, 32, 128, 128),
}
"""The published networks, and this package's default."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("presets", nargs="*", help=f"of {', '.join(PRESETS)} (default: A)")
    for name in ("layers", "stacks", "kernel-size", "residual-channels", "skip-channels", "classes"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help="instead of the preset's")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="streams (default: 1)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--backend", action="append", help="may be repeated (default: all available)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="X", help="of measuring each (default: 1)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="of which the median counts (default: 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    return parser


def measure(generator: Any, batch: int, seconds: float, repeats: int) -> tuple[float, float]:
    """Return samples per second of one stream (median), and the milliseconds of a first chunk of 256."""
    start = time.perf_counter()
    state = generator.start(batch)
    generator.generate(256, state)
    latency = time.perf_counter() - start
    start = time.perf_counter()
    generator.generate(256, state)
    steps = max(256, round(seconds / repeats * 256 / (time.perf_counter() - start)))
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        generator.generate(steps, state)
        rates.append(steps / (time.perf_counter() - start))
    return statistics.median(rates), 1000 * latency


def main(arguments: list[str] | None = None) -> int:
    """Measure what the arguments ask for; print a table, write JSON."""
    options = build_parser().parse_args(arguments)

    import torch

    from wavenet import Generator, WaveNet, WaveNetConfig, backends
    from wavenet.errors import WaveNetError

    torch.manual_seed(0)
    names = options.backend or [name for name, reason in backends.report().items() if reason is None]
    print("network  backend    batch threads  samples/s each  together  x realtime at 16 kHz  first chunk")
    results = []
    try:
        for preset in options.presets or ["A"]:
            if preset not in PRESETS:
                raise WaveNetError(f"unknown network {preset!r}: choose from {', '.join(PRESETS)}")
            shape = dict(PRESETS[preset])
            shape["quantization_channels"] = options.classes or 256
            for name in ("layers", "stacks", "kernel_size", "residual_channels", "skip_channels"):
                if getattr(options, name) is not None:
                    shape[name] = getattr(options, name)
            if options.residual_channels is not None:
                shape["dilation_channels"] = options.residual_channels
            model = WaveNet(WaveNetConfig(**shape))
            for name in names:
                generator = Generator(model, name, threads=options.threads)
                rate, latency = measure(generator, options.batch, options.seconds, options.repeats)
                results.append(
                    {
                        "network": preset,
                        "parameters": model.parameter_count,
                        "backend": name,
                        "precision": "fp32",
                        "batch": options.batch,
                        "threads": options.threads,
                        "samples_per_second_per_stream": round(rate),
                        "samples_per_second_total": round(rate * options.batch),
                        "latency_ms": round(latency, 2),
                    }
                )
                print(
                    f"{preset:8} {name:10} {options.batch:5} {options.threads:7}  {rate:14,.0f}  "
                    f"{rate * options.batch:8,.0f}  {rate / 16000:20.2f}  {latency:8.1f} ms"
                )
        if options.json is not None:
            report = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
            options.json.write_text(json.dumps({**report, "results": results}, indent=2) + "\n")
    except (WaveNetError, OSError) as error:
        print(f"generation.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
