"""Measure generation: samples per second of each backend on random weights, next to the ceilings.

Rates on a shared machine vary; compare figures of one run. Each figure is the median of several repeats,
timed by events on a GPU. The time includes drawing the uniform random numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
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


SIZES = ("layers", "stacks", "kernel_size", "residual_channels", "skip_channels")
RATES = (16000, 24000, 44100, 48000)
PROBED = (16, 32, 64, 128)
"""Widths of a layer that torch.ops.wavenet.cuda_rate measures."""

LARGEST_TILE = 64
"""Streams for which a block of the CUDA kernel stream_cta reads the weights once."""

GROUP = 36
"""Streams that share one reading of the weights (`kGroup` in csrc/cpu/params.h)."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("presets", nargs="*", help=f"of {', '.join(PRESETS)} (default: A)")
    for name in (*SIZES, "classes"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, metavar="N", help="replaces the preset's")
    several: dict[str, Any] = {"nargs": "+", "metavar": "N"}
    parser.add_argument("--batch", type=int, default=[1], **several, help="streams (default: 1)")
    parser.add_argument("--threads", type=int, default=[1], **several, help="default: 1")
    parser.add_argument(
        "--precision", default=["fp32"], **several, help="fp32, bf16, int8, fp16 (default: fp32)"
    )
    parser.add_argument(
        "--backend", **several, help="names, or plain for a loop in PyTorch (default: all that are available)"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="X", help="seconds of measuring each (default: 1)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="repeats, whose median is reported (default: 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    return parser


def seconds_of(work: Callable[[], object], cuda: bool = False) -> float:
    """Return the seconds that a call takes; on a GPU between two events around its kernels."""
    if cuda:
        from wavenet.engine import cuda_tuning

        return cuda_tuning.seconds_of(work)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(
    generator: Any, batch: int, seconds: float, repeats: int, cuda: bool = False
) -> tuple[float, float]:
    """Return samples per second of one stream (median), and the milliseconds of a first chunk of 256.

    The first chunk and a trial, which sets the number of steps, precede the measurement.
    """
    state = None

    def begin() -> None:
        nonlocal state
        state = generator.start(batch)
        generator.generate(256, state)

    latency = seconds_of(begin, cuda)
    trial = 1024 if cuda else 64
    rate = trial / seconds_of(lambda: generator.generate(trial, state), cuda)
    steps = max(64, round(seconds / repeats * rate))
    times = [seconds_of(lambda: generator.generate(steps, state), cuda) for _ in range(repeats)]
    return steps / statistics.median(times), 1000 * latency


Ceiling = tuple[float, str]
"""Upper limit of samples per second in total on this machine, and what sets it."""


def multiply_adds(model: Any) -> int:
    """Return the multiply-adds of one sample."""
    matrices = [value.numel() for name, value in model.state_dict().items() if value.dim() == 2]
    return sum(matrices) - model.embedding.weight.numel()


def ceiling(model: Any, precision: str, batch: int, threads: int, repeats: int) -> Ceiling | None:
    """Return the ceiling on this processor; None if it is unknown.

    Every group of streams reads the weights once, at the rate at which one thread reads a block of their
    size repeatedly. Every sample needs its multiply-adds, at the rate with all operands in registers. The
    rates are medians measured by this call on one thread; several threads are assumed to add up.
    """
    import torch

    from wavenet.engine import packing, registry

    if registry.report()["cpu"] is not None:
        return None
    data = packing.pack(model, precision).data.view(torch.uint8)
    used = data[model.config.quantization_channels * model.config.residual_channels * 4 :].clone()
    operators = torch.ops.wavenet
    reads = [operators.cpu_read_rate(used, 0.05) for _ in range(repeats)]
    products = [operators.cpu_multiply_add_rate(precision == "int8", 0.05) for _ in range(repeats)]
    busy = min(threads, batch)
    streams = -(-batch // busy)
    # Groups have almost the same size.
    group = streams / -(-streams // GROUP)
    return min(
        (busy * statistics.median(reads) / used.numel() * group, "reads"),
        (busy * statistics.median(products) / multiply_adds(model), "products"),
    )


def cuda_ceiling(model: Any, engine: Any, batch: int) -> tuple[Ceiling, str]:
    """Return the ceiling on the engine's device, and the kernel that serves this number of streams.

    Every sample needs its multiply-adds, at the rate of the kernels' instructions with all operands in
    registers. In fp16 a sample waits for two dependent products per layer, each with the latency of one block
    whose weights are resident. A kernel without resident weights reads them once per tile of streams, at the
    rate of all multiprocessors together. The rates are measured by this call.
    """
    import torch

    def rate(what: str) -> float:
        return torch.ops.wavenet.cuda_rate(engine.packed.data, what)

    kernel = engine.serving(batch)
    limits = [(rate(engine.precision) / multiply_adds(model), "products")]
    if engine.precision == "fp16":
        # The widest measurable width that is not wider than the network; it is not slower.
        channels = min(model.config.residual_channels, model.config.dilation_channels)
        width = max([each for each in PROBED if each <= channels], default=PROBED[0])
        limits.append((batch / (model.config.layers * rate(f"layer_{width}")), "latency"))
    if kernel == "stream_cta":
        tiles = -(-batch // LARGEST_TILE)
        limits.append((batch / tiles * rate("reads") / engine.packed.data.nbytes, "reads"))
    return min(limits), kernel


def peak_memory(cuda: bool = False) -> float:
    """Return the peak memory of this process, or of torch on the device, in MB."""
    import resource

    if cuda:
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e3)


def build_model(name: str, options: argparse.Namespace) -> Any:
    """Return a network with random weights in a preset's shape with the options' changes."""
    from wavenet import WaveNet, WaveNetConfig
    from wavenet.errors import WaveNetError

    if name not in PRESETS:
        raise WaveNetError(f"unknown network {name!r}: choose from {', '.join(PRESETS)}")
    shape = {**PRESETS[name], "quantization_channels": options.classes or 256}
    shape |= {size: getattr(options, size) for size in SIZES if getattr(options, size) is not None}
    if options.residual_channels is not None:
        shape["dilation_channels"] = options.residual_channels
    return WaveNet(WaveNetConfig(**shape))


def measure_one(
    name: str,
    model: Any,
    backend: str,
    precision: str,
    batch: int,
    threads: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measure one combination and return its row."""
    from wavenet import Generator

    cuda = backend.startswith("cuda")
    if backend == "plain":
        from plain import PlainGenerator

        generator: Any = PlainGenerator(model, threads)
    else:
        device = "cuda" if cuda else "cpu"
        generator = Generator(model, backend, device=device, threads=threads, precision=precision)
    most, kernel = None, None
    if cuda:
        most, kernel = cuda_ceiling(model, generator.backend, batch)
    else:
        most = ceiling(model, precision, batch, threads, options.repeats)
    rate, latency = measure(generator, batch, options.seconds, options.repeats, cuda)
    return {
        "network": name,
        "parameters": model.parameter_count,
        "backend": backend,
        "kernel": kernel,
        "precision": precision,
        "batch": batch,
        "threads": threads,
        "samples_per_second_per_stream": round(rate),
        "samples_per_second_total": round(rate * batch),
        "ceiling_samples_per_second": None if most is None else round(most[0]),
        "fraction_of_ceiling": None if most is None else round(rate * batch / most[0], 3),
        "ceiling_set_by": None if most is None else most[1],
        "x_realtime": {str(each): round(rate / each, 2) for each in RATES},
        "latency_ms": round(latency, 2),
        "peak_memory_mb": round(peak_memory(cuda), 1),
    }


HEAD = (
    "net    backend    prec  batch threads  samples/s each  together   ceiling  reached  of        "
    "x realtime at 16 / 24 / 44.1 / 48 kHz  first chunk  peak memory"
)


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    times = " / ".join(f"{value:.2f}" for value in row["x_realtime"].values())
    most, reached, by = (
        row[key] for key in ("ceiling_samples_per_second", "fraction_of_ceiling", "ceiling_set_by")
    )
    limits = f"{'-':>9} {'-':>8}  {'-':8}" if most is None else f"{most:9,} {reached:8.0%}  {by:8}"
    return (
        f"{row['network']:6} {row['backend']:10} {row['precision']:5} {row['batch']:5} {row['threads']:7}  "
        f"{row['samples_per_second_per_stream']:14,} {row['samples_per_second_total']:9,} {limits}  "
        f"{times:>37}  {row['latency_ms']:8.1f} ms  {row['peak_memory_mb']:8,.0f} MB"
    )


def combinations(options: argparse.Namespace, names: list[str]) -> Iterator[tuple[str, str, int, int]]:
    """Yield backend, precision, batch and threads; engines with one precision are measured in that one."""
    for backend, precision in itertools.product(names, options.precision):
        kind = backend.partition(":")[0]
        if precision == "fp32" or kind == ("cuda" if precision == "fp16" else "cpu"):
            yield from itertools.product([backend], [precision], options.batch, options.threads)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: print a table, write JSON; return the exit code."""
    options = build_parser().parse_args(arguments)

    import torch

    from wavenet.engine import registry
    from wavenet.errors import WaveNetError

    torch.manual_seed(0)
    names = options.backend or [name for name, reason in registry.report().items() if reason is None]
    print("\n".join([*registry.describe(), "", HEAD]))
    results = []
    try:
        for name in options.presets or ["A"]:
            model = build_model(name, options)
            for combination in combinations(options, names):
                results.append(measure_one(name, model, *combination, options))
                print(line(results[-1]), flush=True)
        if options.json is not None:
            report = {
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "backends": registry.describe(),
                "results": results,
            }
            options.json.write_text(json.dumps(report, indent=2) + "\n")
    except (WaveNetError, OSError) as error:
        print(f"generation.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
