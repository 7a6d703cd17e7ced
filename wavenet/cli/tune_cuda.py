"""`python -m wavenet.cli.tune_cuda`: measure which CUDA kernel is the fastest here, for generation to use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from wavenet.cli import interrupted

# Everything else is loaded inside `main`, where an interrupt is one line.
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from wavenet.cli.common import Parser

PROGRAM = "python -m wavenet.cli.tune_cuda"
MOST = 65_536
"""More streams are a slip of the hand."""


def build_parser() -> Parser:
    """Return the parser."""
    from pathlib import Path

    from wavenet.cli.common import Parser

    parser = Parser(
        prog=PROGRAM,
        description="Measure the CUDA kernels on 8 streams, 16, and so on, and remember the fastest for\n"
        "each number, for networks of this shape on this kind of device. No sample depends on the kernel.",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="a checkpoint, or a training run (default: the newest under ./checkpoints)",
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:N (default: cuda)")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp16", help="default: fp16")
    parser.add_argument(
        "--streams", type=int, default=1024, metavar="N", help="the most to measure (default: 1024)"
    )
    return parser


def work(options: Namespace) -> int:
    """Carry out parsed options; return the exit code."""
    from wavenet.engine import cuda_tuning
    from wavenet.engine.cuda import KERNELS, CudaBackend
    from wavenet.errors import ConfigError
    from wavenet.generation.generator import Generator
    from wavenet.models import locate
    from wavenet.models.wavenet import WaveNet
    from wavenet.utils.console import Console
    from wavenet.utils.files import printable

    if not 1 <= options.streams <= MOST:
        raise ConfigError(f"--streams {options.streams}: must be from 1 to {MOST}")
    console = Console()
    directory = locate.find(options.checkpoint or locate.RUN)
    model = WaveNet.from_pretrained(directory)
    generator = Generator(model, "cuda", device=options.device, precision=options.precision)
    engine = generator.backend
    assert isinstance(engine, CudaBackend)
    console.line(f"{'streams':>8}" + "".join(f"{name:>16}" for name in KERNELS) + "  samples/s together")
    found = []
    for streams, rates in cuda_tuning.measure(engine, generator.start, options.streams):
        cells = (f"{rates[name]:,.0f}" if name in rates else "-" for name in KERNELS)
        best = max(rates, key=lambda name: rates[name])
        console.line(f"{streams:8}" + "".join(f"{cell:>16}" for cell in cells) + f"  {best}")
        found.append((streams, best))
    cuda_tuning.remember(engine.identity(), found)
    console.line(f"remembered in {printable(cuda_tuning.path())}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    try:
        from wavenet.cli.common import run

        return run(build_parser(), work, arguments)
    except KeyboardInterrupt:
        return interrupted(PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
