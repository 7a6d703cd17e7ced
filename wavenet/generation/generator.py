"""Generation sample by sample: prime, draw, stream, continue."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from wavenet.audio import mulaw
from wavenet.conditioning.base import Frames, FrameSource
from wavenet.conditioning.supplied import SuppliedFrames
from wavenet.engine import registry
from wavenet.engine.sampling import Sampling
from wavenet.engine.state import GeneratorState, stream_numbers
from wavenet.errors import ConfigError
from wavenet.generation.conditioned import (
    Bias,
    GateBiasProvider,
    gate_bias_of_row,
    grouped_gate_biases,
    shared_gate_bias,
    single_thread,
)
from wavenet.generation.leading_silence import first_sounds
from wavenet.models import locate
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet

__all__ = ["Bias", "Conditioning", "Generator", "GeneratorState", "Sampling"]

Conditioning = Bias | Sequence[Bias | None]
"""Conditioning of the streams of a state: one for all, or one for each (None: unconditional)."""

CHUNK = 2048
"""Samples of all streams together that are drawn between two checks for an interrupt or a reader."""

MIN_CHUNK = 64
"""Samples per stream and chunk below which the checks would cost more than the samples."""

DEVICE_CHUNK = 256
"""The same on a GPU, where every chunk is a kernel launch."""


class Generator:
    """Generates audio with a network.

    The samples of a stream depend on its own row of the state only (seed, number, primer, sampling settings
    and conditioning), to the bit: not on the other streams of the batch, the length of the chunks, or the
    number of threads. On one machine, drawing 1 s and then 3 s gives the same samples as drawing 4 s.

    Parameters
    ----------
    model : WaveNet
        Copied; later changes to it have no effect.
    backend : str
        "auto", or a name from `wavenet.engine.registry.NAMES`.
    device : str
        Where to generate: "cpu", "cuda", or "cuda:" and a number.
    threads : int, optional
        Maximum number of threads over which streams are spread.
    precision : str
        Of the weights in the sample loop: "fp32" (exact), or another one that the backend has, faster and a
        little less accurate: "bf16" and "int8" on the CPU, "fp16" on a GPU. Priming is always exact, and a
        state can be continued in another precision.

    Attributes
    ----------
    fallback_reason : str or None
        One line where "auto" could not use the engine that it prefers: the one it uses, and why.

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
        self.fallback_reason = registry.fallback_reason(name, reasons)
        self._bias_computer = registry.bias_computer(self.backend, self.model)

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

        Raises
        ------
        CheckpointError
            If there is no checkpoint, or it is damaged.
        """
        model = WaveNet.from_pretrained(locate.find(Path(directory)))
        return cls(model, backend, device, threads, precision)

    def encode(self, audio: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return the int64 classes of amplitudes in [-1, 1], of the same shape."""
        return mulaw.encode(torch.as_tensor(audio), self.config.quantization_channels)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the amplitudes of classes, float32 in [-1, 1], of the same shape, on the CPU."""
        return mulaw.decode(samples.cpu(), self.config.quantization_channels)

    def gate_bias_provider(self, source: FrameSource, guidance: float = 1.0) -> GateBiasProvider:
        """Return what computes the gate bias of a stream from classes, a score, a spectrum or other frames.

        Parameters
        ----------
        source : FrameSource
            Of one of the kinds in `wavenet.conditioning`.
        guidance : float
            Strength of the conditioning: 1 as in training, more for emphasis; see `GateBiasProvider`.

        Raises
        ------
        ConfigError
            If the network is unconditional, or `guidance` is below 0.
        """
        if self._bias_computer is None:
            raise ConfigError("this network is unconditional; remove the conditioning")
        return GateBiasProvider(self._bias_computer, source, guidance)

    @torch.inference_mode()
    def gate_bias(self, frames: Frames | None, position: int = 0) -> GateBias | None:
        """Return the gate bias of some frames, of which number 0 begins at a position of the stream."""
        found = self.model.gate_bias_for(frames)
        return None if found is None else dataclasses.replace(found, start=found.start + position)

    def start(
        self,
        batch: int = 1,
        seed: int = 0,
        first_stream: int = 0,
        gate_bias: Conditioning | None = None,
        sampling: Sampling | None = None,
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
        gate_bias : GateBias or GateBiasProvider, or a sequence of one for each stream, optional
            Conditions the silence before the streams as well. A network with features requires it, here and
            in all methods below.
        sampling : Sampling, optional
            Settings of all the streams; `GeneratorState.with_sampling` sets those of each.
        """
        if gate_bias is not None:
            return self.prime(
                torch.empty(batch, 0, dtype=torch.int64), seed, first_stream, gate_bias, sampling
            )
        empty = torch.empty(1, 0, dtype=torch.int64)
        return self.prime(empty, seed, sampling=sampling).fan_out(batch, first_stream)

    @torch.inference_mode()
    def prime(
        self,
        samples: torch.Tensor,
        seed: int = 0,
        first_stream: int = 0,
        gate_bias: Conditioning | None = None,
        sampling: Sampling | None = None,
        conditioning_start: int = 0,
    ) -> GeneratorState:
        """Return streams that continue given samples.

        The queues are filled from one parallel pass over the last receptive field, one stream at a time.

        Parameters
        ----------
        samples : integer tensor (time,) or (batch, time)
            Classes; silence is assumed before them.
        seed, first_stream, gate_bias, sampling
            As in `start`.
        conditioning_start : int
            Position of the first sample of frame 0 of the conditioning: the length of the primer, if the
            conditioning begins after it.

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
        silence = torch.full((batch, max(0, context - length)), self.config.silence)
        recent = torch.cat([silence, samples[:, max(0, length - context) :]], dim=1)
        state = GeneratorState(
            queues=torch.empty(batch, self.config.queue_steps, self.config.residual_channels),
            position=torch.full((batch,), length),
            last_sample=recent[:, -1].clone(),
            stream=stream_numbers(batch, first_stream),
            seed=torch.full((batch,), seed),
            conditioning_start=torch.full((batch,), conditioning_start),
        ).with_sampling(sampling or Sampling())
        # The gate bias of the receptive field before the first new sample.
        before = dataclasses.replace(state, position=state.position - context)
        cpu = torch.device("cpu")
        if isinstance(gate_bias, GateBias):
            gate_bias = self._fit(gate_bias, batch, cpu)
        biases = self._per_stream(gate_bias, batch)
        with single_thread():
            for row, bias in enumerate(biases):
                own = None if bias is None else gate_bias_of_row(bias, before, row, context)
                own = None if own is None else self._fit(own, 1, cpu)
                inputs = self.model.layer_inputs(recent[row : row + 1, :-1], own, position=length)
                # The input fed in the step at position p is stored in slot p mod depth.
                rings = [torch.roll(each[0], length % each.shape[1], 0) for each in inputs]
                state.queues[row] = torch.cat(rings)
        return state.to(self.backend.device)

    def advance(
        self, state: GeneratorState, samples: torch.Tensor, gate_bias: Conditioning | None = None
    ) -> torch.Tensor:
        """Feed given samples and return the network's predictions of them.

        Parameters
        ----------
        state : GeneratorState
            Changed in place.
        samples : integer tensor (batch, time)
        gate_bias : GateBias or GateBiasProvider, or a sequence of one for each stream, optional

        Returns
        -------
        float32 tensor (batch, quantization_channels, time)
            The logits at index i predict samples[:, i].
        """
        self.check(state)
        samples = self._classes(samples).to(state.queues.device)
        if len(samples) != state.batch:
            raise ConfigError(f"samples of batch {len(samples)} given to a state of {state.batch} stream(s)")
        return self._run(self.backend.advance, state, samples, gate_bias).transpose(1, 2)

    def generate(
        self,
        steps: int | None = None,
        state: GeneratorState | None = None,
        sampling: Sampling | None = None,
        gate_bias: Conditioning | None = None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw `steps` new samples of every stream.

        Parameters
        ----------
        steps : int, optional
            Samples per stream: seconds times `config.sample_rate`. By default the length of `features`.
        state : GeneratorState, optional
            The streams to continue, changed in place; each has its own sampling settings. By default a new
            single stream with seed 0.
        sampling : Sampling, optional
            Settings of new streams.
        gate_bias : GateBias or GateBiasProvider, or a sequence of one for each stream, optional
        features : float tensor (feature_channels, frames) or (batch, feature_channels, frames), optional
            Conditioning of new streams, as log mel frames: one stream for each of the batch, with seed 0. For
            frames that arrive during generation, or with a state, use `gate_bias_provider`.

        Returns
        -------
        int64 tensor (batch, steps)
            Classes; `decode` converts them to amplitudes.

        Raises
        ------
        ConfigError
            If `features` do not have the network's shape, or come with `gate_bias`; if `features` or
            `sampling` come with a `state`; if neither `steps` nor `features` is given.
        """
        if sampling is not None and state is not None:
            raise ConfigError("sampling sets up new streams: remove it, or use state.with_sampling(...)")
        if features is not None:
            if state is not None or gate_bias is not None:
                raise ConfigError("features begin new streams: remove state and gate_bias")
            supplied = SuppliedFrames(self.config, features)
            gate_bias = self.gate_bias_provider(supplied)
            steps = supplied.ready if steps is None else steps
            state = self.start(len(supplied.values), gate_bias=gate_bias, sampling=sampling)
        if steps is None:
            raise ConfigError("steps is missing: give a number of samples, or features")
        state = self.start(gate_bias=gate_bias, sampling=sampling) if state is None else state
        chunks = list(self.stream(state, steps, gate_bias=gate_bias))
        return torch.cat(chunks, dim=1) if chunks else state.last_sample.new_empty(state.batch, 0)

    def skip_silence(
        self, state: GeneratorState, limit: int, gate_bias: Conditioning | None = None
    ) -> GeneratorState:
        """Return the streams as they are just before their first sound.

        A stream that starts from silence may remain silent for a while. A sound is loud at its beginning and
        for at least half of the next quarter of a second, so a click does not count.

        Parameters
        ----------
        state : GeneratorState
            Not changed.
        limit : int
            Maximum number of samples to look ahead; a stream without a sound in them is returned unchanged.
        gate_bias : GateBias or GateBiasProvider, optional
            For all streams.
        """
        self.check(state)
        return first_sounds(
            lambda ahead, chunk: self.stream(ahead, limit, chunk, gate_bias),
            self.decode,
            state,
            self.config.sample_rate,
        )

    def stream(
        self,
        state: GeneratorState,
        steps: int | None = None,
        chunk: int | None = None,
        gate_bias: Conditioning | None = None,
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
        if isinstance(gate_bias, GateBias):
            # Expanded and moved to the device once, not for every chunk.
            gate_bias = self._fit(gate_bias, state.batch)
        else:
            self._per_stream(gate_bias, state.batch)
        return self._stream(state, steps, chunk, gate_bias)

    def _stream(
        self, state: GeneratorState, steps: int | None, chunk: int, gate_bias: Conditioning | None
    ) -> Iterator[torch.Tensor]:
        left = math.inf if steps is None else steps
        while left > 0:
            draws = self.backend.uniforms(state, int(min(chunk, left))).to(state.queues.device)
            samples = self._run(self.backend.generate, state, draws, gate_bias)
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

    def _run(
        self,
        operation: Callable[[GeneratorState, torch.Tensor, GateBias | None], torch.Tensor],
        state: GeneratorState,
        inputs: torch.Tensor,
        conditioning: Conditioning | None,
    ) -> torch.Tensor:
        """Run an operation of the engine, in one call unless the streams' gate biases need several."""
        steps = inputs.shape[1]
        biases = self._per_stream(conditioning, state.batch)
        if conditioning is None or not state.batch:
            return operation(state, inputs, None)
        if isinstance(conditioning, GateBias):
            return operation(state, inputs, self._fit(conditioning, state.batch))
        if isinstance(conditioning, GateBiasProvider):
            shared = shared_gate_bias(conditioning, state, steps)
            if shared is not None:
                return operation(state, inputs, self._fit(shared, state.batch))
        found: torch.Tensor | None = None
        groups = grouped_gate_biases(biases, state, steps)
        for rows, bias in groups:
            fitted = None if bias is None else self._fit(bias, len(rows))
            if len(groups) == 1:
                return operation(state, inputs, fitted)
            part = state.select(rows)
            own = operation(part, inputs[rows], fitted)
            state.put(rows, part)
            found = own.new_empty(state.batch, *own.shape[1:]) if found is None else found
            found[rows] = own
        assert found is not None
        return found

    def _per_stream(self, conditioning: Conditioning | None, batch: int) -> list[Bias | None]:
        """Return the conditioning of each stream, having checked their number and that none is missing."""
        if isinstance(conditioning, Sequence):
            biases = list(conditioning)
            if len(biases) != batch:
                raise ConfigError(f"{len(biases)} gate biases for {batch} stream(s): give one for each")
        else:
            biases = [conditioning] * batch
        config = self.config.conditioning
        if config is not None and config.has_features and (None in biases or conditioning is None):
            raise ConfigError(f"this network requires {config.features} features: gate_bias is missing")
        return biases

    def _fit(self, gate_bias: GateBias, batch: int, device: torch.device | None = None) -> GateBias:
        """Return the bias with one row per stream on the backend's or another device; check its shape."""
        rows, frames, *shape = gate_bias.values.shape
        expected = [self.config.layers, 2 * self.config.dilation_channels]
        if shape != expected or rows not in (1, batch):
            raise ConfigError(
                f"gate bias is {tuple(gate_bias.values.shape)}: expected (1 or {batch}, frames, "
                f"{expected[0]}, {expected[1]})"
            )
        values = gate_bias.values.to(device or self.backend.device).expand(batch, frames, *shape)
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
