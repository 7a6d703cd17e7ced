"""WaveNet in float64 and numpy: the reference that the engines are tested against.

Written from the formulas; it shares no code and no data layout with the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """Channel counts and dilations of a network."""

    classes: int
    residual: int
    dilation: int
    skip: int
    head: int
    kernel_size: int
    stacks: int
    layers_per_stack: int

    @property
    def dilations(self) -> list[int]:
        return [2**layer for _ in range(self.stacks) for layer in range(self.layers_per_stack)]

    @property
    def context(self) -> int:
        """Samples before the latest that a prediction depends on."""
        return sum((self.kernel_size - 1) * dilation for dilation in self.dilations)


def random_shape(rng: np.random.Generator) -> Shape:
    """Return a small network shape with channel counts that are no multiples of a block."""
    return Shape(
        classes=int(rng.integers(2, 40)),
        residual=int(rng.integers(1, 20)),
        dilation=int(rng.integers(1, 36)),
        skip=int(rng.integers(1, 90)),
        head=int(rng.integers(1, 40)),
        kernel_size=int(rng.integers(2, 5)),
        stacks=int(rng.integers(1, 4)),
        layers_per_stack=int(rng.integers(1, 5)),
    )


def random_weights(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return float32 weights by name, large enough for every activation to be nonlinear."""

    def matrix(out: int, inputs: int) -> np.ndarray:
        return (rng.standard_normal((out, inputs)) * 1.5 / math.sqrt(inputs)).astype(np.float32)

    def bias(out: int) -> np.ndarray:
        return (rng.standard_normal(out) * 0.3).astype(np.float32)

    layers = len(shape.dilations)
    weights = {"embedding.weight": matrix(shape.classes, shape.residual) * np.float32(shape.residual**0.5)}
    for layer in range(layers):
        name = f"layers.{layer}"
        weights[f"{name}.dilated.weight"] = matrix(2 * shape.dilation, shape.kernel_size * shape.residual)
        weights[f"{name}.dilated.bias"] = bias(2 * shape.dilation)
        if layer < layers - 1:
            weights[f"{name}.residual.weight"] = matrix(shape.residual, shape.dilation)
            weights[f"{name}.residual.bias"] = bias(shape.residual)
    weights["skip.weight"] = matrix(shape.skip, layers * shape.dilation)
    weights["skip.bias"] = bias(shape.skip)
    weights["head1.weight"] = matrix(shape.head, shape.skip)
    weights["head1.bias"] = bias(shape.head)
    weights["head2.weight"] = matrix(shape.classes, shape.head)
    weights["head2.bias"] = bias(shape.classes)
    return weights


def gate_rows(values: np.ndarray, hop: int, start: int, linear: bool, positions: range) -> np.ndarray:
    """Return the float64 bias of the gates at each position, (positions, layers, 2 * dilation).

    `values` is (frames, layers, 2 * dilation); frame f begins at position start + f * hop.
    """
    values = values.astype(np.float64)
    last = len(values) - 1
    rows = []
    for position in positions:
        frame = math.floor((position - start) / hop)
        bias = values[min(max(frame, 0), last)]
        if linear:
            share = (position - start - frame * hop) / hop
            bias = (1 - share) * bias + share * values[min(max(frame + 1, 0), last)]
        rows.append(bias)
    return np.stack(rows)


def logits(
    shape: Shape, weights: dict[str, np.ndarray], samples: np.ndarray, rows: np.ndarray | None = None
) -> np.ndarray:
    """Return float64 logits (len(samples) - context, classes); the first depend on context + 1 samples.

    Parameters
    ----------
    samples : int array (time,)
        The inputs of the network. Sample i and those before it predict sample i + 1.
    rows : array (time, layers, 2 * dilation), optional
        Added to the gates in the step that reads the sample of the same index.
    """
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    hidden = exact["embedding.weight"][samples]
    skip = np.zeros((len(samples), shape.skip)) + exact["skip.bias"]
    for layer, dilation in enumerate(shape.dilations):
        name = f"layers.{layer}"
        context = (shape.kernel_size - 1) * dilation
        kernel = exact[f"{name}.dilated.weight"].reshape(
            2 * shape.dilation, shape.kernel_size, shape.residual
        )
        time = len(hidden) - context
        total = np.zeros((time, 2 * shape.dilation)) + exact[f"{name}.dilated.bias"]
        for tap in range(shape.kernel_size):
            total += hidden[tap * dilation : tap * dilation + time] @ kernel[:, tap].T
        if rows is not None:
            total += rows[len(rows) - time :, layer]
        filtered, gated = total[:, : shape.dilation], total[:, shape.dilation :]
        output = np.tanh(filtered) / (1 + np.exp(-gated))
        share = exact["skip.weight"][:, layer * shape.dilation : (layer + 1) * shape.dilation]
        skip = skip[len(skip) - time :] + output @ share.T
        if f"{name}.residual.weight" in exact:
            residual = output @ exact[f"{name}.residual.weight"].T + exact[f"{name}.residual.bias"]
            hidden = hidden[context:] + residual
    middle = np.maximum(skip, 0) @ exact["head1.weight"].T + exact["head1.bias"]
    return np.maximum(middle, 0) @ exact["head2.weight"].T + exact["head2.bias"]


def draw(
    row: np.ndarray, uniform: float, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> int:
    """Return the class that inverting the cumulative distribution at `uniform` gives, in float64."""
    row = row.astype(np.float64)
    ranked = sorted(range(len(row)), key=lambda index: (-row[index], index))
    if temperature == 0:
        return ranked[0]
    weights = np.exp((row - row.max()) / temperature)
    kept = ranked[:top_k] if top_k else ranked
    if top_p < 1:
        total = math.fsum(weights[kept])
        count = 1
        while math.fsum(weights[kept[:count]]) < top_p * total:
            count += 1
        kept = kept[:count]
    total = math.fsum(weights[kept])
    cumulative = 0.0
    for index in sorted(kept):
        cumulative += weights[index]
        if cumulative > uniform * total:
            return index
    return max(index for index in kept if weights[index] > 0)
