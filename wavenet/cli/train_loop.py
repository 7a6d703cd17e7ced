"""A training run from its first step to its end: the summary, a dry run, and when it stops."""

from __future__ import annotations

import argparse
import math
import shlex
import time

import torch

from wavenet.cli import INTERRUPTED
from wavenet.cli.signals import signal_handler
from wavenet.config import WaveNetConfig
from wavenet.engine import registry
from wavenet.errors import ConfigError
from wavenet.training.trainer import Trainer
from wavenet.utils.console import Console, duration
from wavenet.utils.distributed import World


def summary(config: WaveNetConfig, trainer: Trainer, device: torch.device) -> str:
    """Return one line about the network, its precision and its device."""
    processes = trainer.world.size
    milliseconds = 1000 * config.receptive_field / config.sample_rate
    return (
        f"network  {config.layers} layers, {trainer.model.parameter_count:,} parameters, receptive field "
        f"{config.receptive_field:,} samples ({milliseconds:.0f} ms), "
        f"{trainer.training.precision} on {device}" + (f", {processes} processes" if processes > 1 else "")
    )


def warn_without_engine(device: torch.device, console: Console) -> None:
    """Say so if training on the CPU cannot use the C++ operators."""
    if device.type == "cpu" and (reason := registry.report()["cpu"]):
        console.line(f"warning: the C++ engine cannot run here and training is slower: {reason}")


def dry_run(trainer: Trainer, console: Console) -> int:
    """Take one step and report its time and its loss; return the exit code."""
    start = time.perf_counter()
    bits, _ = trainer.step()
    seconds = time.perf_counter() - start
    if not math.isfinite(bits):
        raise ConfigError(f"the loss of the first step is {bits}: lower --lr")
    steps = trainer.training.steps
    console.line(
        f"dry run  one step took {seconds:.2f} s at {bits:.3f} bits per sample; {steps:,} steps take about "
        f"{duration(seconds * steps)} (the first step is slower than the others)"
    )
    return 0


def train(trainer: Trainer, console: Console, options: argparse.Namespace, end: float | None) -> int:
    """Train until all steps are done, a signal arrives, or the time is over; return the exit code."""
    # Clocks of several machines differ a little; the first process decides for all.
    limit = TimeLimit(options.max_time, end if trainer.world.is_main else None, console)
    with signal_handler.stopping(console) as stop:
        finished = trainer.train(lambda: stop() or limit(), options.tensorboard)
    step = trainer.progress.step
    run_dir = shlex.quote(str(options.out_dir))
    best = trainer.progress.best_bits
    result = f", best validation {best:.3f} bits per sample" if best is not None else ""
    if finished:
        console.line(f"done: {step} steps{result}; checkpoints in {options.out_dir}")
        console.line(f"now: wavenet-generate --checkpoint {run_dir} --seconds 4 out.wav")
        return 0
    console.line(f"stopped and saved at step {step}{result}; continue with:")
    # Device and threads are not part of a run, but its losses are the same only with the same ones.
    again = "" if options.device == "auto" else f" --device {shlex.quote(options.device)}"
    again += "" if options.threads is None else f" --threads {options.threads}"
    again += " --tensorboard" if options.tensorboard else ""
    console.line(f"  {_command(trainer.world)} --resume --out-dir {run_dir}{again}")
    return 0 if trainer.world.any_rank(limit.passed) else INTERRUPTED


class TimeLimit:
    """Returns whether the time given to a run is over.

    Parameters
    ----------
    text : str or None
        That time, as given with --max-time.
    end : float or None
        On the clock of `time.monotonic`; None for no limit.
    console : Console
    """

    def __init__(self, text: str | None, end: float | None, console: Console) -> None:
        self.text = text
        self.end = end
        self.console = console
        self.passed = False

    def __call__(self) -> bool:
        if self.end is not None and not self.passed and time.monotonic() >= self.end:
            self.passed = True
            self.console.line(f"--max-time {self.text} is over: saving a checkpoint")
        return self.passed


def _command(world: World) -> str:
    """Return the command that starts a run with as many processes."""
    if world.size == 1:
        return "wavenet-train"
    count = f"--nproc-per-node {world.local_size}"
    return f"torchrun {count}{' ...' if world.size > world.local_size else ''} -m wavenet.cli.train"
