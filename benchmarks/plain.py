"""The baseline of generation: a WaveNet step by step in plain PyTorch with queues.

Every operation takes the whole batch, and `torch.multinomial` draws the samples. The class has only those
attributes of a generator that the benchmark uses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wavenet.models.wavenet import WaveNet


class PlainGenerator:
    """Generates with PyTorch operators, float32."""

    def __init__(self, model: WaveNet, threads: int):
        self.model = model.eval().requires_grad_(False)
        torch.set_num_threads(threads)

    def start(self, batch: int) -> dict:
        """Return empty queues and the first samples."""
        config = self.model.config
        depths = [(config.kernel_size - 1) * dilation for dilation in config.dilations]
        return {
            "queues": [torch.zeros(batch, depth, config.residual_channels) for depth in depths],
            "sample": torch.full((batch,), config.silence),
            "position": 0,
        }

    @torch.inference_mode()
    def generate(self, steps: int, state: dict) -> torch.Tensor:
        """Draw samples of every stream, int64 (batch, steps)."""
        drawn = []
        for _ in range(steps):
            probabilities = torch.softmax(self.step(state), dim=-1)
            state["sample"] = torch.multinomial(probabilities, 1)[:, 0]
            state["position"] += 1
            drawn.append(state["sample"])
        return torch.stack(drawn, dim=1)

    def step(self, state: dict) -> torch.Tensor:
        """Return the logits (batch, classes) of the next sample."""
        model, position = self.model, state["position"]
        hidden = model.embedding(state["sample"])
        gates = []
        for layer, queue in zip(model.residual_layers, state["queues"], strict=True):
            depth = queue.shape[1]
            taps = [
                queue[:, (position - tap * layer.dilation) % depth] for tap in range(layer.taps - 1, 0, -1)
            ]
            activation = layer.dilated(torch.cat([*taps, hidden], dim=1))
            queue[:, position % depth] = hidden
            filtered, gated = activation.chunk(2, dim=1)
            gates.append(torch.tanh(filtered) * torch.sigmoid(gated))
            if layer.residual is not None:
                hidden = hidden + layer.residual(gates[-1])
        skip = model.skip(torch.cat(gates, dim=1))
        return model.head2(F.relu(model.head1(F.relu(skip))))
