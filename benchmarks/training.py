"""Measure training: target samples per second of a step and peak memory, next to a plain conv1d WaveNet.

Each combination runs in a separate process, which makes its peak memory its own. Rates on a shared machine
vary; compare figures of one run. Each rate is the median of several steps after a warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from generation import PRESETS, SIZES, build_model, peak_memory

WARM_UP = 2
KINDS = ("wavenet", "plain")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("presets", nargs="*", help=f"of {', '.join(PRESETS)} (default: A)")
    for name in (*SIZES, "classes"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, metavar="N", help="replaces the preset's")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="segments a step (default: 4)")
    parser.add_argument(
        "--segment", type=int, default=8000, metavar="N", help="targets of each, in samples (default: 8000)"
    )
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="default: both")
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"], help="default: both"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--steps", type=int, default=7, metavar="N", help="measured steps (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    return parser


def measure(name: str, kind: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Take some steps on noise and return a row of the table; call it in a separate process."""
    from wavenet.training import environment

    if kind == "wavenet":
        # As wavenet-train does.
        environment.prepare()
    import torch
    from plain_training import PlainWaveNet

    from wavenet.models import native_layers
    from wavenet.models.losses import cross_entropy
    from wavenet.models.precision import autocast

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build_model(name, options)
    config = model.config
    before = peak_memory()
    context = config.receptive_field - 1
    if kind == "plain":
        model, context = PlainWaveNet(config), 0
    classes = config.quantization_channels
    inputs = torch.randint(classes, (options.batch, context + options.segment))
    targets = torch.randint(classes, (options.batch, options.segment))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    seconds = []
    with native_layers.reuse_blocks() if kind == "wavenet" else contextlib.nullcontext():
        for _ in range(WARM_UP + options.steps):
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            with autocast(torch.device("cpu"), precision):
                logits = model(inputs)
            cross_entropy(logits, targets, per_target=native_layers.cross_entropy_per_target).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seconds.append(time.perf_counter() - start)
    return {
        "network": name,
        "kind": kind,
        "precision": precision,
        "batch": options.batch,
        "segment": options.segment,
        "threads": torch.get_num_threads(),
        "target_samples_per_second": round(
            options.batch * options.segment / statistics.median(seconds[WARM_UP:])
        ),
        "peak_memory_mb": round(peak_memory(), 1),
        "memory_before_mb": round(before, 1),
    }


HEAD = "net    kind     prec   threads  target samples/s  peak memory  of it before the first step"


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    return (
        f"{row['network']:6} {row['kind']:8} {row['precision']:5} {row['threads']:8}  "
        f"{row['target_samples_per_second']:16,}  {row['peak_memory_mb']:8,.0f} MB  "
        f"{row['memory_before_mb']:8,.0f} MB"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: print a table, write JSON; return the exit code."""
    options = build_parser().parse_args(arguments)

    import torch

    from wavenet.errors import WaveNetError

    results = []
    context = multiprocessing.get_context("spawn")
    print(HEAD)
    try:
        for name, kind, precision in itertools.product(
            options.presets or ["A"], options.kind, options.precision
        ):
            with context.Pool(1) as pool:
                results.append(pool.apply(measure, (name, kind, precision, options)))
            print(line(results[-1]), flush=True)
        if options.json is not None:
            machine = platform.processor() or platform.machine()
            report = {"machine": machine, "torch": torch.__version__, "results": results}
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    except (WaveNetError, OSError) as error:
        print(f"training.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
