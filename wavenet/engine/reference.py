"""The sample loop in plain torch, one stream and one step at a time: the reference for the other engines."""

from __future__ import annotations

import torch

from wavenet.engine.sampling import Sampling, uniforms
from wavenet.engine.state import GeneratorState
from wavenet.errors import BackendError
from wavenet.models.gate_bias import GateBias
from wavenet.models.wavenet import WaveNet


class ReferenceBackend:
    """Step-by-step generation with the model's own modules, float32.

    Streams are computed one after the other, so that the rounding of a stream does not depend on the batch.

    Parameters
    ----------
    model : WaveNet
        Used as it is, not copied.
    threads : int
        Without effect.
    precision : str
        "fp32".
    """

    name = "reference"
    precisions = ("fp32",)

    def __init__(self, model: WaveNet, threads: int = 1, precision: str = "fp32"):
        self.model = model
        self.precision = precision
        self.device = torch.device("cpu")
        self.threads = threads

    @staticmethod
    def available() -> str | None:
        """Return None: this engine always runs."""
        return None

    @staticmethod
    def details() -> list[str]:
        """Return a description for the list of engines."""
        return ["for clarity, not for speed"]

    @staticmethod
    def uniforms(state: GeneratorState, steps: int) -> torch.Tensor:
        """Return the numbers to draw with; see `wavenet.engine.sampling.uniforms`."""
        return uniforms(state, steps)

    @torch.inference_mode()
    def advance(
        self, state: GeneratorState, samples: torch.Tensor, gate_bias: GateBias | None = None
    ) -> torch.Tensor:
        """Feed given samples; see `Backend.advance`."""
        batch, steps = samples.shape
        logits = torch.empty(batch, steps, self.model.config.quantization_channels)
        for row in range(batch):
            stream = _Stream(self.model, state, row, gate_bias)
            for step in range(steps):
                logits[row, step] = stream.predict()
                stream.accept(int(samples[row, step]))
        return logits

    @torch.inference_mode()
    def generate(
        self, state: GeneratorState, uniforms: torch.Tensor, gate_bias: GateBias | None = None
    ) -> torch.Tensor:
        """Draw samples with given uniforms; see `Backend.generate`."""
        batch, steps = uniforms.shape
        samples = torch.empty(batch, steps, dtype=torch.int64)
        for row in range(batch):
            stream, sampling = _Stream(self.model, state, row, gate_bias), state.sampling(row)
            for step in range(steps):
                sample = draw(stream.predict(), float(uniforms[row, step]), sampling)
                samples[row, step] = sample
                stream.accept(sample)
        return samples


class _Stream:
    """One row of a state, stepping through the network."""

    def __init__(self, model: WaveNet, state: GeneratorState, row: int, gate_bias: GateBias | None):
        self.model = model
        self.state = state
        self.row = row
        self.gate_bias = None if gate_bias is None else gate_bias.stream(row)
        depths = [(model.config.kernel_size - 1) * dilation for dilation in model.config.dilations]
        self.queues = state.queues[row].split(depths)

    def predict(self) -> torch.Tensor:
        """Feed the last sample and return the logits (classes,) of the next."""
        model, position = self.model, int(self.state.position[self.row])
        hidden = model.embedding(self.state.last_sample[self.row])
        gates = []
        for index, (layer, queue) in enumerate(zip(model.residual_layers, self.queues, strict=True)):
            slots = [
                (position - delay * layer.dilation) % len(queue) for delay in range(layer.taps - 1, 0, -1)
            ]
            inputs = torch.cat([*(queue[slot] for slot in slots), hidden])
            queue[position % len(queue)] = hidden
            activation = layer.dilated(inputs)
            if self.gate_bias is not None:
                activation = activation + self.gate_bias.at(position, 1, index)[0, 0]
            filtered, gated = activation.chunk(2)
            gates.append(torch.tanh(filtered) * torch.sigmoid(gated))
            if layer.residual is not None:
                hidden = hidden + layer.residual(gates[-1])
        skip = model.skip(torch.cat(gates))
        logits = model.head2(torch.relu(model.head1(torch.relu(skip))))
        if not bool(torch.isfinite(logits).all()):
            stream = int(self.state.stream[self.row])
            raise BackendError(
                f"the network produced non-finite logits at sample {position} of stream {stream}"
            )
        return logits

    def accept(self, sample: int) -> None:
        """Make `sample` the latest of the stream."""
        self.state.last_sample[self.row] = sample
        self.state.position[self.row] += 1


def draw(logits: torch.Tensor, uniform: float, sampling: Sampling) -> int:
    """Draw a class from logits (classes,) by inverting the cumulative distribution at `uniform`."""
    if sampling.temperature == 0:
        return int(torch.nonzero(logits == logits.max())[0])
    weights = torch.exp((logits - logits.max()) / sampling.temperature).to(torch.float64)
    order = torch.sort(logits, descending=True, stable=True).indices
    if 0 < sampling.top_k < len(logits):
        weights[order[sampling.top_k :]] = 0
    if sampling.top_p < 1:
        mass = torch.cumsum(weights[order], 0)
        # A class is kept while the classes before it have less than the required mass.
        before = torch.cat([mass.new_zeros(1), mass[:-1]])
        weights[order[before >= sampling.top_p * mass[-1]]] = 0
    cumulative = torch.cumsum(weights, 0)
    beyond = torch.nonzero(cumulative > uniform * cumulative[-1])
    return int(beyond[0]) if len(beyond) else int(torch.nonzero(weights)[-1])
