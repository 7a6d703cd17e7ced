"""Layers, heads and loss of WaveNet's parallel form on the CPU, each as one autograd function.

The compiled extension computes a layer (products, biases, gate, residual path) block by block while a block
is in the processor's cache; between layers it stores only the residual path and the two halves of the gate.
The products of the heads are torch's, with memory that the extension reuses from step to step. The network is
the one of `wavenet.models.wavenet`, which uses torch's operators where the extension cannot be used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from wavenet.data.batch import IGNORED
from wavenet.extension import load_extension
from wavenet.models.gate_bias import GateBias
from wavenet.models.losses import reference_per_target


class LayerWeights(NamedTuple):
    """Parameters of one gated layer.

    Attributes
    ----------
    dilation : int
    dilated_weight : float32 tensor (2 * dilation_channels, kernel_size * residual_channels)
        The oldest tap's inputs first; the tanh branch's outputs first.
    dilated_bias : float32 tensor (2 * dilation_channels,)
    output_weight : float32 tensor (residual_channels, dilation_channels), or None
        None in the last layer, as is `output_bias`.
    output_bias : float32 tensor (residual_channels,), or None
    """

    dilation: int
    dilated_weight: torch.Tensor
    dilated_bias: torch.Tensor
    output_weight: torch.Tensor | None
    output_bias: torch.Tensor | None


def usable(hidden: torch.Tensor) -> bool:
    """Return whether the extension can compute layers of these activations."""
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    if not torch.is_autocast_enabled("cpu"):
        return _can_train(False)
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and _can_train(True)


@functools.cache
def _can_train(bf16: bool) -> bool:
    try:
        return load_extension() is None and torch.ops.wavenet.cpu_can_train(bf16)
    except RuntimeError:
        # WAVENET_CPU names an instruction set that this CPU lacks; the generation engine reports that.
        return False


@contextlib.contextmanager
def reuse_blocks() -> Iterator[None]:
    """Reuse the memory that one step of training frees in the next, to the end of the context.

    The system returns memory page by page, filled with zeros, which takes up to a tenth of a step. At most as
    much is kept as was in use at one time. Contexts can be nested; the outermost frees the memory at its end.
    """
    usable = _can_train(False)
    if usable:
        torch.ops.wavenet.cpu_keep_blocks(True)
    try:
        yield
    finally:
        if usable:
            torch.ops.wavenet.cpu_keep_blocks(False)


def gates(
    hidden: torch.Tensor, layers: Sequence[LayerWeights], steps: int, gate_bias: GateBias | None, end: int
) -> torch.Tensor:
    """Compute gated layers.

    Under autocast to bfloat16, products are of values rounded to it and summed in float32; the residual path
    stays float32.

    Parameters
    ----------
    hidden : float32 tensor (batch, time, residual_channels)
    layers : sequence of LayerWeights
    steps : int
        Number of last outputs of each layer to return.
    gate_bias : GateBias or None
    end : int
        Position in the stream after the last one of `hidden`; matters only to `gate_bias`.

    Returns
    -------
    float32 tensor (batch, steps, layers * dilation_channels), or bfloat16 under autocast
        All layers' gated activations side by side.
    """
    bf16 = torch.is_autocast_enabled("cpu")
    settings = (1, 0, False) if gate_bias is None else (gate_bias.hop, int(gate_bias.start), gate_bias.linear)
    values = None
    if gate_bias is not None:
        values = gate_bias.values.expand(len(hidden), -1, -1, -1).contiguous()
    dilations = tuple(layer.dilation for layer in layers)
    plan = _Plan(dilations, steps, end, *settings, bf16, torch.is_grad_enabled())
    flat = [tensor for layer in layers for tensor in layer[1:]]
    return _Stack.apply(plan, hidden.contiguous(), values, *flat)


class _Plan(NamedTuple):
    dilations: tuple[int, ...]
    steps: int
    end: int
    hop: int
    start: int
    linear: bool
    bf16: bool
    keep: bool

    def settings(self, index: int, steps: int) -> tuple[int, int, int, bool, bool]:
        """Return the operators' settings for a layer with outputs at the `steps` positions before the end."""
        start = self.start - (self.end - steps)
        return self.dilations[index], self.hop, start, self.linear, self.bf16


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, hidden: torch.Tensor, values: torch.Tensor | None, *flat: torch.Tensor | None
    ) -> torch.Tensor:
        count = len(plan.dilations)
        channels = flat[1].shape[0] // 2  # type: ignore[union-attr]
        found = torch.ops.wavenet.cpu_block(hidden, [len(hidden), plan.steps, count * channels], plan.bf16)
        kept: list[torch.Tensor | None] = []
        for index in range(count):
            weights = flat[4 * index : 4 * index + 4]
            steps = _steps(hidden, weights[0], plan.dilations[index])
            part = found[:, :, index * channels : (index + 1) * channels]
            bias = None if values is None else values[:, :, index]
            halves, after = torch.ops.wavenet.gated_layer(
                hidden, *weights, bias, part, *plan.settings(index, steps)
            )
            if plan.keep:
                kept += [hidden, halves]
            hidden = after
        ctx.plan = plan
        ctx.save_for_backward(values, *flat, *kept)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        plan: _Plan = ctx.plan
        count = len(plan.dilations)
        values, *saved = ctx.saved_tensors
        flat, kept = saved[: 4 * count], saved[4 * count :]
        (found,) = gradients
        found = found.contiguous()
        channels = found.shape[2] // count
        bias_gradient = None if values is None else torch.empty_like(values)
        weights_gradients: list[torch.Tensor | None] = [None] * (4 * count)
        above: torch.Tensor | None = None
        for index in reversed(range(count)):
            weights = flat[4 * index : 4 * index + 4]
            hidden, halves = kept[2 * index : 2 * index + 2]
            part = found[:, :, index * channels : (index + 1) * channels]
            bias = None if values is None else values[:, :, index]
            above, *each, frames = torch.ops.wavenet.gated_layer_backward(
                hidden, *weights, bias, halves, part, above, *plan.settings(index, halves.shape[1])
            )
            last = weights[2] is None
            weights_gradients[4 * index : 4 * index + 4] = [*each[:2], *([None, None] if last else each[2:])]
            if bias_gradient is not None:
                bias_gradient[:, :, index] = frames
        return None, above, bias_gradient, *weights_gradients


def heads(gates: torch.Tensor, weights: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Compute matrix products of gated activations, with rectifiers between them.

    The products are torch's; rectifiers and their gradients are computed in place.

    Parameters
    ----------
    gates : float32 tensor (batch, steps, channels), or bfloat16
        From `gates`; results are rounded to its dtype.
    weights : sequence of (float32 tensor (outputs, inputs), float32 tensor (outputs,))
        Weights and biases of the products, in order.

    Returns
    -------
    tensor (batch, steps, outputs of the last product), of the dtype of `gates`
    """
    flat = [tensor for pair in weights for tensor in pair]
    return _Heads.apply(torch.is_grad_enabled(), gates, *flat)


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: bool, gates: torch.Tensor, *flat: torch.Tensor) -> torch.Tensor:
        values, kept = gates.flatten(0, 1), []
        for number, (weight, bias) in enumerate(zip(flat[::2], flat[1::2], strict=True)):
            if number > 0:
                values.relu_()
            if keep:
                kept.append(values)
            values = _product(values, weight.to(gates.dtype).t(), bias.to(gates.dtype))
        ctx.save_for_backward(*kept, *flat)
        return values.unflatten(0, gates.shape[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        kept, weights = saved[: len(saved) // 3], saved[len(saved) // 3 :: 2]
        above = gradients[0].contiguous().flatten(0, 1)
        flat: list[torch.Tensor] = []
        for number in reversed(range(len(kept))):
            values, weight = kept[number], weights[number]
            flat[:0] = [above.t().mm(values).to(weight.dtype), above.sum(0).to(weight.dtype)]
            above = _product(above, weight.to(above.dtype))
            if number > 0:
                torch.ops.aten.threshold_backward.grad_input(above, values, 0, grad_input=above)
        return None, above.view(*gradients[0].shape[:2], -1), *flat


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    shape = [left.shape[0], right.shape[1]]
    found = torch.ops.wavenet.cpu_block(left, shape, left.dtype == torch.bfloat16)
    if bias is None:
        return torch.mm(left, right, out=found)
    return torch.addmm(bias, left, right, out=found)


def can_score(logits: torch.Tensor) -> bool:
    """Return whether `cross_entropies` takes these logits."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return logits.dtype in (torch.float32, torch.bfloat16) and _can_train(logits.dtype == torch.bfloat16)


def cross_entropy_per_target(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each target with the extension if possible, else with torch.

    A `wavenet.models.losses.PerTarget`.
    """
    if can_score(logits):
        return cross_entropies(logits, targets, IGNORED)
    return reference_per_target(logits, targets)


def cross_entropies(logits: torch.Tensor, targets: torch.Tensor, ignored: int) -> torch.Tensor:
    """Return -ln of the targets' probabilities, 0 where they are `ignored`.

    Exponential, sum and logarithm of a row are computed in float32 while it is in the processor's cache, in
    both passes; probabilities are not stored.

    Parameters
    ----------
    logits : float32 or bfloat16 tensor (rows, classes)
    targets : int64 tensor (rows,)
    ignored : int

    Returns
    -------
    float32 tensor (rows,)

    Raises
    ------
    RuntimeError
        If a target is not one of the classes.
    """
    return _CrossEntropies.apply(logits.contiguous(), targets.contiguous(), ignored)


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, ignored: int) -> torch.Tensor:
        nats, normalizers = torch.ops.wavenet.cross_entropy(logits, targets, ignored)
        ctx.ignored = ignored
        ctx.save_for_backward(logits, targets, nats, normalizers)
        return nats

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (found,) = gradients
        made = torch.ops.wavenet.cross_entropy_backward(*ctx.saved_tensors, found.contiguous(), ctx.ignored)
        return made, None, None


def _steps(hidden: torch.Tensor, weight: torch.Tensor | None, dilation: int) -> int:
    assert weight is not None
    return hidden.shape[1] - (weight.shape[1] // hidden.shape[2] - 1) * dilation
