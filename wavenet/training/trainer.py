"""The training loop: steps, validation, checkpoints, samples, and the records of all of them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from wavenet.audio.wav import write_wav
from wavenet.config import TrainingConfig
from wavenet.data.batch import Segments
from wavenet.data.dataset import Dataset
from wavenet.data.loader import Loader
from wavenet.errors import CheckpointError, WaveNetError
from wavenet.models import native_layers
from wavenet.models.registry import NetworkConfig
from wavenet.training import checkpoint, resume
from wavenet.training.compile import compile_network
from wavenet.training.metrics import Metrics, final_line, is_due, status_line, training_record
from wavenet.training.monitor import Monitor
from wavenet.training.objective import Objective, objective_for
from wavenet.training.optimizers import OptimizerFactory, adamw
from wavenet.training.progress import TrainingProgress, TrainingRecord
from wavenet.training.schedules import ema_decay, learning_rate
from wavenet.training.step import accumulate_gradients
from wavenet.training.tensorboard import Board
from wavenet.utils.console import Console, Meter
from wavenet.utils.distributed import ALONE, World
from wavenet.utils.files import cause

LOG_EVERY = 10
"""Steps averaged in one record of `metrics.jsonl`."""

GIVE_UP_AFTER = 100
"""Consecutive steps with a non-finite loss or gradient after which a run ends with an error."""

FINAL_SECONDS = 600.0
"""Seconds of validation audio that are scored once, when a run has ended."""

SAMPLES = "samples"
BOARD = "tensorboard"
EFFECTIVE_FILE = "effective.json"


class Trainer:
    """One training run in one directory.

    Parameters
    ----------
    config : NetworkConfig
        Configuration of the network, of any registered architecture.
    training : TrainingConfig
        With its precision resolved to "fp32" or "bf16".
    data : Dataset
        Training and validation clips.
    run : Path
        Directory to which the run writes.
    device : torch.device
    source : dict
        JSON values that name the recordings; saved in every checkpoint.
    console : Console
        Gets the messages.
    world : World
        The processes that train together, each with its own batch; the first one writes.
    objective : Objective, optional
        By default that of the configuration's architecture.
    optimizer : callable
        Takes network and training configuration, and returns the optimiser.
    """

    def __init__(
        self,
        config: NetworkConfig,
        training: TrainingConfig,
        data: Dataset,
        run: Path,
        device: torch.device,
        source: dict[str, Any],
        console: Console,
        world: World = ALONE,
        objective: Objective | None = None,
        optimizer: OptimizerFactory = adamw,
    ):
        self.config = config
        self.training = training
        self.data = data
        self.run = run
        self.device = device
        self.source = source
        self.console = console
        self.log = console.line
        self.world = world
        self.objective = objective or objective_for(config, training)
        self.board: Board | None = None
        self.metrics = Metrics(run, self.log)
        torch.manual_seed(training.seed)
        self.model = self.objective.build().to(device)
        self.segment = max(1, round(training.segment * config.sample_rate))
        # The same segments in every process.
        self.objective.fit_normalization(
            self.model, lambda count: data.train.batch(0, count, self.segment, training.seed)
        )
        self.loader = Loader(self._segments, ahead=device.type == "cuda")
        self.averaged = copy.deepcopy(self.model).requires_grad_(False).eval()
        if training.compile:
            compile_network(self.model, training)
        self.optimizer = optimizer(self.model, training)
        self.fingerprint = resume.fingerprint(data)
        self.progress = TrainingProgress()

    @property
    def monitor(self) -> Monitor:
        """Checks steps and validations."""
        return Monitor(self.training, self.progress, self.log)

    @property
    def samples_per_step(self) -> int:
        """Targets of a step, in all processes together."""
        return self.training.batch * self.training.accumulate * self.world.size * self.segment

    @property
    def ended(self) -> bool:
        """Whether the run is complete."""
        return self.progress.step >= self.training.steps or self.monitor.patience_is_over

    def start_from(self, network: Mapping[str, torch.Tensor]) -> None:
        """Start with the weights of a trained network of the same configuration instead of random ones.

        Tensors that it lacks (those of a conditioning that is new to it) stay random.
        """
        network = {**self.model.state_dict(), **network}
        self.model.load_state_dict(network)
        self.averaged.load_state_dict(network)

    # -- one step ------------------------------------------------------------------------------------

    def step(self) -> tuple[float, float]:
        """Take one optimiser step and return its loss in bits per sample and the gradient's norm.

        A step whose loss or gradient is not finite changes no weight and is counted.
        """
        progress, training = self.progress, self.training
        segments = self.loader.take(progress.step)
        rate = learning_rate(training, progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = accumulate_gradients(
            self.objective, self.model, training, progress.step, segments, self.device, self.world
        )
        bits = loss / math.log(2)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm))
        if math.isfinite(bits) and math.isfinite(norm):
            self.optimizer.step()
            progress.skipped_in_a_row = 0
            decay = ema_decay(training, progress.step - progress.skipped)
            pairs = zip(self.averaged.parameters(), self.model.parameters(), strict=True)
            for average, parameter in pairs:
                average.lerp_(parameter.detach(), 1 - decay)
            progress.window_bits += bits
            progress.window_steps += 1
            self.monitor.step(norm)
        else:
            self._skip()
        progress.step += 1
        return bits, norm

    def _segments(self, step: int) -> Segments:
        rows = self.training.batch * self.training.accumulate
        return self.data.train.batch(step, rows, self.segment, self.training.seed, self.world.rank * rows)

    def _skip(self) -> None:
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= GIVE_UP_AFTER:
            raise WaveNetError(
                f"{GIVE_UP_AFTER} steps in a row had a non-finite loss or gradient, up to step "
                f"{progress.step}: lower lr, or resume from an earlier checkpoint"
            )

    # -- the loop ------------------------------------------------------------------------------------

    def train(self, stop: Callable[[], bool] = lambda: False, tensorboard: bool = False) -> bool:
        """Train to the last step; return False if `stop` ended it earlier. Both ways write a checkpoint.

        Parameters
        ----------
        stop : callable
            Called after every step, and while a sample is generated or the finished network is scored. If it
            returns true in one process, all processes stop.
        tensorboard : bool
            Whether to write the records for TensorBoard too.

        Raises
        ------
        CheckpointError
            If another process trains in the same directory, or the last checkpoint cannot be written.
        WaveNetError
            If steps are no longer finite, or another process of the run has ended.
        """
        self._synchronize()
        with contextlib.ExitStack() as stack:
            if self.world.is_main:
                stack.enter_context(checkpoint.lock(self.run))
            if tensorboard and self.world.is_main:
                self.board = Board(self.run / BOARD, self.progress.step, self.log)
                stack.callback(self.board.close)
            stack.callback(self.loader.close)
            stack.enter_context(native_layers.reuse_blocks())
            return self._train(stop)

    def _synchronize(self) -> None:
        """Check that all processes are at the same point of the same run, and start from equal weights."""
        settings, step = (self.config, self.training), self.progress.step
        self.world.agree({"settings": settings, "recordings": self.fingerprint, "step": step})
        self.world.broadcast([*self.model.parameters(), *self.averaged.parameters()])

    def _train(self, stop: Callable[[], bool]) -> bool:
        training, progress, world = self.training, self.progress, self.world
        world.run_on_main(self._tidy)
        meter, waited = Meter(), self.loader.waited
        saved = progress.step if world.run_on_main(lambda: checkpoint.numbered(self.run)) else -1
        while not self.ended and not world.any_rank(stop()):
            _, norm = self.step()
            done = progress.step
            meter.count(self.samples_per_step)
            if done % LOG_EVERY == 0:
                waiting = meter.share(self.loader.waited - waited)
                waited = self.loader.waited
                self._record(training_record(progress, training, norm, meter.rate, waiting))
            if is_due(done, training.validate_every, training.steps) and self.data.validation.samples:
                with meter.paused():
                    self.validate()
            if is_due(done, training.sample_every, training.steps):
                with meter.paused():
                    world.run_on_main(lambda: self.write_sample(stop))
            if is_due(done, training.checkpoint_every, training.steps):
                with meter.paused():
                    saved = done if world.run_on_main(self._try_save) else saved
            self.console.status(status_line(progress, training, meter.rate, self.samples_per_step))
        if saved != progress.step:
            world.run_on_main(self._save_last)
        if self.ended:
            self._finish(stop)
        return self.ended

    def _finish(self, stop: Callable[[], bool]) -> None:
        """Report the end of a run, and score it unless an earlier process of it has done so."""
        self.monitor.ended()
        scored = self.world.run_on_main(
            lambda: self.metrics.contains(self.progress.step, "final_validation_bits")
        )
        if self.data.validation.samples and not scored:
            self._final_score(stop)

    def _tidy(self) -> None:
        """Remove from the directory whatever a killed run wrote beyond this step."""
        step = self.progress.step
        checkpoint.set_aside_beyond(self.run, step)
        self.metrics.trim(step)
        for leftover in (self.run / SAMPLES).glob(".wavenet-*.tmp"):
            leftover.unlink(missing_ok=True)
        values = {**self.source, **self.objective.settings(), **self.training.to_json()}
        values.update(device=str(self.device), threads=torch.get_num_threads())
        self.metrics.write_beside(EFFECTIVE_FILE, values)

    def validate(self) -> float:
        """Score the averaged weights on the validation part; save them if they are the best so far."""
        progress, report = self.progress, self.data.report
        bits = self._score(self.training.validation_seconds)
        progress.validation_bits = bits if math.isfinite(bits) else None
        self._record(
            {
                "step": progress.step,
                "validation_bits": progress.validation_bits,
                "unigram_bits": report.validation_unigram_bits,
                "uniform_bits": report.uniform_bits,
            }
        )
        self.log(
            f"step {progress.step}: validation {bits:.3f} bits per sample "
            f"(uniform {report.uniform_bits:.2f}, unigram {report.validation_unigram_bits:.2f})"
        )
        if self.monitor.validation(bits, report.validation_unigram_bits) and self.world.run_on_main(
            self._try_save_best
        ):
            self.monitor.new_best(bits)
        return bits

    def _try_save_best(self) -> bool:
        try:
            checkpoint.save_best(self.run, self.config, self.averaged.state_dict(), self._training_record())
        except OSError as error:
            self.log(f"warning: the best network could not be saved: {cause(error)}")
            return False
        return True

    def _score(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> float:
        """Return the averaged weights' bits per sample over about `seconds` of the validation part."""
        limit = round(seconds * self.config.sample_rate)
        windows = self.data.validation.windows(self.segment, max_samples=limit)
        windows = itertools.islice(windows, self.world.rank, None, self.world.size)
        windows = itertools.takewhile(lambda window: not stop(), windows)
        return self.objective.score(self.averaged, windows, self.device, self.world.sums)

    def _final_score(self, stop: Callable[[], bool]) -> None:
        """Score the finished network on more audio than the validations during the run."""
        self.console.status("scoring the finished network")
        bits = self._score(max(FINAL_SECONDS, self.training.validation_seconds), stop)
        if self.world.any_rank(stop()) or not math.isfinite(bits):
            return
        self._record({"step": self.progress.step, "final_validation_bits": bits})
        self.log(final_line(bits, self.data.report.validation_unigram_bits))

    def write_sample(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Generate audio from the averaged weights into `samples/`, unless `stop` returns true."""
        step, rate = self.progress.step, self.config.sample_rate
        steps = round(self.training.sample_seconds * rate)
        try:
            audio = self.objective.sample(self.averaged, self.data, steps, self.training.seed, stop)
            if audio is None:
                return
            path = self.run / SAMPLES / f"{checkpoint.step_name(step)}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wav(path, audio.numpy(), rate)
        except (OSError, WaveNetError) as error:
            self.log(f"warning: no sample at step {step}: {error}")
            return
        self.log(f"step {step}: wrote {path}")
        if self.board is not None:
            self.board.audio(step, audio, rate)

    # -- saving and resuming -------------------------------------------------------------------------

    def _training_record(self) -> TrainingRecord:
        return TrainingRecord(
            progress=dataclasses.replace(self.progress),
            training=self.training,
            source=self.source,
            data=self.fingerprint,
            threads=torch.get_num_threads(),
            processes=self.world.size,
        )

    def save(self) -> Path:
        """Write a numbered checkpoint and delete those beyond the number kept."""
        self.metrics.sync()
        state = resume.state_tensors(self.model, self.optimizer)
        current = checkpoint.Checkpoint(self.averaged.state_dict(), state, self._training_record())
        path = checkpoint.save(self.run, self.config, current)
        checkpoint.prune(self.run, self.training.keep)
        return path

    def _try_save(self) -> bool:
        try:
            self.save()
        except OSError as error:
            self.log(
                f"warning: no checkpoint at step {self.progress.step}: {cause(error)}; "
                "training continues, and earlier checkpoints are kept"
            )
            return False
        return True

    def _save_last(self) -> None:
        try:
            self.save()
        except OSError as error:
            left = checkpoint.numbered(self.run)
            resume_from = f", then resume from {left[0].name}" if left else ""
            raise CheckpointError(
                f"{self.run}: the checkpoint of step {self.progress.step} could not be written "
                f"({cause(error)}); free some space{resume_from}"
            ) from None

    def restore(self, path: Path, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint of this run.

        Raises `CheckpointError` if its tensors do not fit; the trainer is then unchanged.
        """
        try:
            resume.restore(path, saved, self.model, self.averaged, self.optimizer)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove {path} to resume from the one before") from None
        record = saved.record
        self.progress = dataclasses.replace(record.progress)
        if record.processes != self.world.size:
            self.log(
                f"{self.world.size} process(es), not {record.processes}: "
                "each computes a batch of its own per step"
            )
        if record.data != self.fingerprint:
            self.log(
                "warning: the audio has changed since this run began: losses will differ, "
                "and the best network is selected again from here"
            )
            self.monitor.forget_best()

    def _record(self, record: dict[str, Any]) -> None:
        if not self.world.is_main:
            return
        self.metrics.add(record)
        if self.board is not None:
            self.board.add(record)
