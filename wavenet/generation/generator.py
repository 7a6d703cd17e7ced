"""Generation sample by sample: prime, draw, stream, continue."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from wavenet.audio import mulaw
from wavenet.conditioning.base import Frames, FrameSource
from wavenet.conditioning.supplied import SuppliedFrames
from wavenet.engine import registry
from wavenet.engine.sampling import Sampling, uniforms
from wavenet.engine.state import GeneratorState, stream_numbers
from wavenet.errors import ConfigError
from wavenet.generation.conditioned import Steering, single_thread
from wavenet.generation.leading_silence import first_sounds
from wavenet.models import locate
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

Bias = GateBias | Steering
"""What generation can be told: a gate bias, or what makes one as it is needed (`Generator.steering`)."""

__all__ = ["Generator", "GeneratorState", "Sampling"]

CHUNK = 2048
"""Samples drawn, of all streams together, between two looks at the outside world (an interrupt, a reader)."""

MIN_CHUNK = 64
"""Samples per stream below which the looks would cost more than the samples."""

DEVICE_CHUNK = 256
"""The same on a GPU, where every look is a launch."""


class Generator:
    """Makes audio from a network.

    What a stream sounds like depends on its seed, its number, its primer and the sampling settings only:
    not on the batch it is in, the length of the chunks, or the number of threads. On one machine, drawing
    1 s and then 3 s gives the same samples as drawing 4 s.

    Parameters
    ----------
    model : WaveNet
        Copied; later changes to it have no effect.
    backend : str
        "auto", or a name from `wavenet.engine.registry.NAMES`.
    device : str
        Where to generate.
    threads : int, optional
        Threads over which streams are spread.
    precision : str
        Of the weights in the sample loop: "fp32" (exact), or what the backend has besides, faster and a
        little less accurate: "bf16" and "int8" on the CPU, "fp16" on a GPU. Priming is exact always, and a
        state may go on in another precision.

    Attributes
    ----------
    passed_over : str or None
        One line where "auto" could not take the engine it prefers: what it took, and why.

    Raises
    ------
    BackendError
        If the backend cannot run here, or does not have the precision.
    """

    def __init__(
        self,
        model: WaveNet,
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        precision: str = "fp32",
    ):
        self.config = model.config
        self.model = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
        name, reasons = registry.choose(backend, device, precision)
        self.backend = registry.create(self.model, name, device, threads, precision)
        self.passed_over = registry.passed_over(name, reasons)
        self._bias_maker = registry.bias_maker(self.backend, self.model)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        precision: str = "fp32",
    ) -> Generator:
        """Load a checkpoint, or the newest one of a training run; see the class for the other parameters.

        Raises `CheckpointError` if there is none, or it is damaged.
        """
        model = WaveNet.from_pretrained(locate.find(Path(directory)))
        return cls(model, backend, device, threads, precision)

    def encode(self, audio: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return the int64 classes of amplitudes in [-1, 1], of the same shape."""
        return mulaw.encode(torch.as_tensor(audio), self.config.quantization_channels)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the amplitudes of classes, float32 in [-1, 1], of the same shape, on the CPU."""
        return mulaw.decode(samples.cpu(), self.config.quantization_channels)

    def steering(self, source: FrameSource, start: int = 0, guidance: float = 1.0) -> Steering:
        """Return what makes the gate bias of a stream out of classes, features or a score.

        Parameters
        ----------
        source : FrameSource
            `Classes`, `ScoreSource`, `MelSource`, `SuppliedFrames`, or two of them in a `CombinedSource`.
        start : int
            Position of the stream at which they begin: after a primer, its length.
        guidance : float
            How much they count: 1 as in training, more with emphasis; see `Steering`.

        Raises
        ------
        ConfigError
            If the network was trained without conditions, or `guidance` is below 0.
        """
        if self._bias_maker is None:
            raise ConfigError("this network was trained without conditions: it can be told nothing")
        return Steering(self._bias_maker, source, start, guidance)

    @torch.inference_mode()
    def gate_bias(self, frames: Frames | None, position: int = 0) -> GateBias | None:
        """Return the gate bias of some frames, of which number 0 begins at a position of the stream."""
        found = self.model.gate_bias_for(frames)
        return None if found is None else dataclasses.replace(found, start=found.start + position)

    def start(
        self, batch: int = 1, seed: int = 0, first_stream: int = 0, gate_bias: Bias | None = None
    ) -> GeneratorState:
        """Return streams that begin after endless silence.

        Parameters
        ----------
        batch : int
            Number of streams.
        seed : int
            0 or more.
        first_stream : int
            Number of the first stream; the others follow.
        gate_bias : GateBias or Steering, optional
            Conditions the silence before the streams as well; batch 1 or `batch`. A network trained with
            features needs one, here and everywhere below.
        """
        if gate_bias is not None:
            return self.prime(torch.empty(batch, 0, dtype=torch.int64), seed, first_stream, gate_bias)
        return self.prime(torch.empty(1, 0, dtype=torch.int64), seed).fan_out(batch, first_stream)

    @torch.inference_mode()
    def prime(
        self,
        samples: torch.Tensor,
        seed: int = 0,
        first_stream: int = 0,
        gate_bias: Bias | None = None,
    ) -> GeneratorState:
        """Return streams that go on from given samples.

        The queues are filled from one parallel pass over the last receptive field, one stream at a time.

        Parameters
        ----------
        samples : integer tensor (time,) or (batch, time)
            Classes; silence is assumed before them.
        seed, first_stream, gate_bias
            As in `start`.

        Raises
        ------
        ConfigError
            If a sample is not a class of the network, or the seed is out of range.
        """
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed = {seed}: must be from 0 to 2^63 - 1")
        samples = self._classes(samples).cpu()
        batch, length = samples.shape
        context = self.config.receptive_field
        bias_of = self._fit(gate_bias, batch, torch.device("cpu"), length - context, length)
        silence = torch.full((batch, max(0, context - length)), self.config.silence)
        recent = torch.cat([silence, samples[:, max(0, length - context) :]], dim=1)
        queues = torch.empty(batch, self.config.queue_steps, self.config.residual_channels)
        with single_thread():
            for row in range(batch):
                bias = None if bias_of is None else bias_of.stream(row)
                inputs = self.model.layer_inputs(recent[row : row + 1, :-1], bias, position=length)
                # The input fed in the step at position p stands in slot p mod depth.
                rings = [torch.roll(each[0], length % each.shape[1], 0) for each in inputs]
                queues[row] = torch.cat(rings)
        state = GeneratorState(
            queues=queues,
            position=torch.full((batch,), length),
            last_sample=recent[:, -1].clone(),
            stream=stream_numbers(batch, first_stream),
            seed=seed,
        )
        return state.to(self.backend.device)

    def advance(
        self, state: GeneratorState, samples: torch.Tensor, gate_bias: Bias | None = None
    ) -> torch.Tensor:
        """Feed given samples and return what the network expected in their place.

        Parameters
        ----------
        state : GeneratorState
            Changed in place.
        samples : integer tensor (batch, time)
        gate_bias : GateBias or Steering, optional

        Returns
        -------
        float32 tensor (batch, quantization_channels, time)
            The logits at index i predict samples[:, i].
        """
        self.check(state)
        samples = self._classes(samples).to(state.queues.device)
        if len(samples) != state.batch:
            raise ConfigError(f"samples of batch {len(samples)} given to a state of {state.batch} stream(s)")
        return self.backend.advance(
            state, samples, self._fit_to(gate_bias, state, samples.shape[1])
        ).transpose(1, 2)

    def generate(
        self,
        steps: int | None = None,
        state: GeneratorState | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        gate_bias: Bias | None = None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw `steps` new samples of every stream.

        Parameters
        ----------
        steps : int, optional
            Samples per stream; seconds times `config.sample_rate`. By default what `features` cover.
        state : GeneratorState, optional
            Where to go on; changed in place. By default a new single stream with seed 0.
        temperature, top_k, top_p
            See `Sampling`.
        gate_bias : GateBias or Steering, optional
        features : float tensor (feature_channels, frames) or (batch, feature_channels, frames), optional
            What new streams are told, as log mel frames: one stream for each of the batch, with seed 0. For
            frames that arrive while it plays, or to go on from a state, `steering` takes `SuppliedFrames`.

        Returns
        -------
        int64 tensor (batch, steps)
            Classes; `decode` makes amplitudes of them.

        Raises
        ------
        ConfigError
            If `features` are not as the network reads them, or come with a `state` or `gate_bias`; if neither
            `steps` nor `features` is given.
        """
        if features is not None:
            if state is not None or gate_bias is not None:
                raise ConfigError("features begin new streams: leave out state and gate_bias")
            given = SuppliedFrames(self.config, features)
            gate_bias = self.steering(given)
            steps = given.ready if steps is None else steps
            state = self.start(len(given.values), gate_bias=gate_bias)
        if steps is None:
            raise ConfigError("steps: say how many samples to draw, or give features")
        state = self.start(gate_bias=gate_bias) if state is None else state
        chunks = list(self.stream(state, steps, None, temperature, top_k, top_p, gate_bias))
        return torch.cat(chunks, dim=1) if chunks else state.last_sample.new_empty(state.batch, 0)

    def skip_silence(
        self,
        state: GeneratorState,
        limit: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        gate_bias: Bias | None = None,
    ) -> GeneratorState:
        """Return the streams as they stand just before their first sound.

        A stream that starts from silence may stay there for a while before its first note. A sound is what
        begins loud and is loud for at least half of the next quarter of a second: a click is none.

        Parameters
        ----------
        state : GeneratorState
            Left as it is.
        limit : int
            Most samples to look ahead; a stream without a sound in them is returned at its beginning.
        temperature, top_k, top_p, gate_bias
            As in `generate`; the sound is what they will draw.
        """
        self.check(state)
        return first_sounds(
            lambda ahead, chunk: self.stream(ahead, limit, chunk, temperature, top_k, top_p, gate_bias),
            self.decode,
            state,
            self.config.sample_rate,
        )

    def stream(
        self,
        state: GeneratorState,
        steps: int | None = None,
        chunk: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        gate_bias: Bias | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield new samples in chunks, int64 (batch, up to `chunk`), endlessly if `steps` is None.

        The samples do not depend on `chunk`, which by default gives chunks of a fraction of a second's work.
        The other parameters are those of `generate`.
        """
        if chunk is None:
            least = MIN_CHUNK if self.backend.device.type == "cpu" else DEVICE_CHUNK
            chunk = max(least, CHUNK // state.batch)
        if chunk < 1 or (steps is not None and steps < 0):
            raise ConfigError(
                f"chunk = {chunk}, steps = {steps}: a chunk has at least 1 sample, steps at least 0"
            )
        self.check(state)
        sampling = Sampling(temperature, top_k, top_p)
        if not isinstance(gate_bias, Steering):
            gate_bias = self._fit(gate_bias, state.batch, self.backend.device)
        return self._stream(state, steps, chunk, sampling, gate_bias)

    def _stream(
        self,
        state: GeneratorState,
        steps: int | None,
        chunk: int,
        sampling: Sampling,
        gate_bias: Bias | None,
    ) -> Iterator[torch.Tensor]:
        left = math.inf if steps is None else steps
        # Compiled engines make the same numbers sooner.
        numbers = getattr(self.backend, "uniforms", uniforms)
        while left > 0:
            draws = numbers(state, int(min(chunk, left)))
            # What does not change from chunk to chunk has been fitted already.
            moving = isinstance(gate_bias, Steering)
            bias = self._fit_to(gate_bias, state, draws.shape[1]) if moving else gate_bias
            samples = self.backend.generate(state, draws.to(state.queues.device), sampling, bias)
            left -= samples.shape[1]
            yield samples

    def _classes(self, samples: torch.Tensor) -> torch.Tensor:
        """Return samples as int64 (batch, time), having checked that they are classes of the network."""
        if samples.is_floating_point() or samples.is_complex() or samples.dtype == torch.bool:
            raise ConfigError(f"samples are {samples.dtype}: expected classes; `encode` makes them of audio")
        if samples.dim() not in (1, 2):
            raise ConfigError(f"samples are {tuple(samples.shape)}: expected (time,) or (batch, time)")
        samples = torch.atleast_2d(samples).to(torch.int64)
        classes = self.config.quantization_channels
        if samples.numel() and not 0 <= int(samples.min()) <= int(samples.max()) < classes:
            raise ConfigError(
                f"samples range from {int(samples.min())} to {int(samples.max())}: "
                f"this network's classes are 0 to {classes - 1}"
            )
        return samples

    def _fit_to(self, gate_bias: Bias | None, state: GeneratorState, steps: int) -> GateBias | None:
        """Return the bias for the next steps of some streams."""
        first = stop = 0
        if isinstance(gate_bias, Steering) and state.batch:
            first, stop = int(state.position.min()), int(state.position.max()) + max(steps, 1)
        return self._fit(gate_bias, state.batch, self.backend.device, first, stop)

    def _fit(
        self, gate_bias: Bias | None, batch: int, device: torch.device, first: int = 0, stop: int = 1
    ) -> GateBias | None:
        """Return the bias with one row per stream on a device, having checked its shape."""
        if gate_bias is None:
            conditioning = self.config.conditioning
            if conditioning is not None and conditioning.has_features:
                raise ConfigError(
                    f"this network was trained with {conditioning.features} features: tell it some"
                )
            return None
        if isinstance(gate_bias, Steering):
            gate_bias = gate_bias.between(first, stop)
        rows, frames, *shape = gate_bias.values.shape
        expected = [self.config.layers, 2 * self.config.dilation_channels]
        if shape != expected or rows not in (1, batch):
            raise ConfigError(
                f"gate bias is {tuple(gate_bias.values.shape)}: expected (1 or {batch}, frames, "
                f"{expected[0]}, {expected[1]})"
            )
        values = gate_bias.values.to(device).expand(batch, frames, *shape)
        return dataclasses.replace(gate_bias, values=values)

    def check(self, state: GeneratorState) -> None:
        """Raise `ConfigError` unless a state is one of this network's."""
        state.check()
        expected = (state.batch, self.config.queue_steps, self.config.residual_channels)
        if tuple(state.queues.shape) != expected:
            raise ConfigError(
                f"the state's queues are {tuple(state.queues.shape)}, this network's are {expected}: "
                "the state belongs to another network"
            )
        if state.batch and int(state.last_sample.max()) >= self.config.quantization_channels:
            raise ConfigError(
                f"the state's last sample is {int(state.last_sample.max())}: this network's classes are 0 to "
                f"{self.config.quantization_channels - 1}"
            )
