"""`wavenet-train`: trains a network on a folder of recordings."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence

from wavenet.cli import interrupted
from wavenet.cli.common import device_named, run
from wavenet.cli.signals import signal_handler
from wavenet.cli.train_options import AUTO, build_parser
from wavenet.cli.train_settings import MAX_THREADS, RunRequest, complete, read_request, seconds
from wavenet.conditioning import registry as conditioning_kinds
from wavenet.errors import ConfigError
from wavenet.training import environment
from wavenet.utils.distributed import World

PROGRAM = "wavenet-train"


def work(options: argparse.Namespace) -> int:
    """Carry out parsed options; return the exit code."""
    started = time.monotonic()
    options = complete(options)
    if hasattr(options, "plot"):
        return _plot(options)
    if hasattr(options, "plot_to"):
        raise ConfigError(f"--plot-to {options.plot_to}: needs --plot RUN, the run to draw; give both")
    # Wrong values are reported before torch is loaded.
    request = read_request(options)
    end = None if options.max_time is None else started + seconds(options.max_time)
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        raise ConfigError(f"--threads {options.threads}: must be from 1 to {MAX_THREADS}")
    environment.prepare()
    world = World.from_environment()
    if options.init_from is not None and options.resume:
        raise ConfigError("--init-from starts a run and --resume continues one: give one of them")
    return _run(options, request, world, end)


def _run(options: argparse.Namespace, request: RunRequest, world: World, end: float | None) -> int:
    """Train as requested until a time of `time.monotonic`; return the exit code."""
    import torch

    from wavenet.cli import train_data, train_loop, train_start
    from wavenet.models.precision import resolve_precision
    from wavenet.training.compile import explain_compile_errors
    from wavenet.training.memory_plan import explain_out_of_memory, fit_batch
    from wavenet.training.tensorboard import writer_class
    from wavenet.training.trainer import Trainer
    from wavenet.utils.console import Console

    signal_handler.check()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console(silent=not world.is_main)
    device = world.device(device_named(options.device))
    if options.tensorboard:
        # A missing package is reported before the recordings are read.
        writer_class()
    world.join(device)
    start = train_start.resolve(options, request, world, console)
    config, training = start.config, start.training
    if not options.dry_run and world.is_main:
        train_start.check_writable(options.out_dir)
    if training.augment_speed:
        conditioning_kinds.check_speed(config.conditioning)
    training = dataclasses.replace(training, precision=resolve_precision(training.precision, device))
    if request.auto_batch and world.size > 1:
        raise ConfigError(f"--batch {AUTO}: {world.size} processes need the same batch; give a number")
    # A resumed run has a batch already.
    training = fit_batch(config, training, device, request.auto_batch and not options.resume, console.line)

    data = world.run_main_first(
        lambda: train_data.prepared(start.source, config, training, options.out_dir, console)
    )
    config = train_data.attach_conditioning(config, data, start.source, training, console)
    trainer = Trainer(config, training, data, options.out_dir, device, start.source, console, world)
    console.line(train_loop.summary(config, trainer, device))
    train_loop.warn_without_engine(device, console)
    if start.weights is not None:
        trainer.start_from(start.weights)
    if start.checkpoint is not None:
        trainer.restore(*start.checkpoint)
        console.line(f"resuming from {start.checkpoint[0]}")
    with explain_out_of_memory(config, training, device), explain_compile_errors():
        if options.dry_run:
            code = train_loop.dry_run(trainer, console)
        else:
            code = train_loop.train(trainer, console, options, end)
    # A launcher treats a process that ends with another code than 0 as failed, and ends the others.
    world.leave()
    return code


def _plot(options: argparse.Namespace) -> int:
    from wavenet.training.plots import draw_curves
    from wavenet.utils.console import Console

    Console().line(f"wrote {draw_curves(options.plot, getattr(options, 'plot_to', None))}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `wavenet-train`; return the exit code."""
    try:
        return run(build_parser(), work, arguments)
    except KeyboardInterrupt:
        return interrupted(PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
