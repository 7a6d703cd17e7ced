"""From a model to the one flat block of weights that the fast backends read.

The block is float32 and holds, one after the other:

    embedding                      (classes, R')
    for each layer
        dilated                    matrix, 2 D' outputs, kernel_size * R inputs
        dilated bias               (2 D')
        residual bias              (R')             not in the last layer
        output                     matrix, R' + S' outputs (S' in the last layer), D inputs
    skip bias                      (S')
    head1                          matrix, H' outputs, S inputs
    head1 bias                     (H')
    head2                          matrix, Q' outputs, H inputs
    head2 bias                     (Q')

R, D, S, H, Q are the residual, dilation, skip and head channels and the classes; a prime marks padding with
zeros to a multiple of 16, so that any width is served by whole vectors. The outputs of `dilated` are the
filter branch, padded, then the gate branch, padded; those of `output` the residual path, then the layer's
share of the skip sum. Inputs are never padded.

A matrix is cut into blocks of 64 outputs (the last may be narrower), and each block is stored input by input:
`[block][input][output]`. A kernel keeps a block's sums in registers while it reads the weights in order once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from wavenet.config import WaveNetConfig

if TYPE_CHECKING:
    from wavenet.model import WaveNet

LAYOUT_VERSION = 1
"""First entry of a geometry: names the layout above, in float32."""

_PAD = 16
_BLOCK = 64


@dataclass(frozen=True)
class PackedWeights:
    """A network's weights as the operators of `torch.ops.wavenet` take them.

    Attributes
    ----------
    data : float32 tensor (values,)
    geometry : list of int
        Layout version, quantization_channels, residual_channels, dilation_channels, skip_channels,
        head_channels, kernel_size, layers, and each layer's dilation.
    """

    data: torch.Tensor
    geometry: list[int]


def pack(model: WaveNet) -> PackedWeights:
    """Pack a model's weights; the result shares no memory with it."""
    return pack_tensors(model.config, model.state_dict())


def pack_tensors(config: WaveNetConfig, tensors: Mapping[str, torch.Tensor]) -> PackedWeights:
    """Pack weights by their names and shapes in a `WaveNet`'s state dict."""
    values = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in tensors.items()}
    skips = values["skip.weight"].split(config.dilation_channels, dim=1)
    parts = [_pad_last(values["embedding.weight"])]
    for index in range(config.layers):
        parts += _pack_layer(values, f"layers.{index}", skips[index], last=index == config.layers - 1)
    parts += [
        _pad_last(values["skip.bias"]),
        _blocks(_pad_first(values["head1.weight"])),
        _pad_last(values["head1.bias"]),
        _blocks(_pad_first(values["head2.weight"])),
        _pad_last(values["head2.bias"]),
    ]
    geometry = [
        LAYOUT_VERSION,
        config.quantization_channels,
        config.residual_channels,
        config.dilation_channels,
        config.skip_channels,
        config.head_channels,
        config.kernel_size,
        config.layers,
        *config.dilations,
    ]
    return PackedWeights(torch.cat([part.reshape(-1) for part in parts]), geometry)


def _pack_layer(
    values: Mapping[str, torch.Tensor], name: str, skip: torch.Tensor, last: bool
) -> list[torch.Tensor]:
    weight, bias = values[f"{name}.dilated.weight"], values[f"{name}.dilated.bias"]
    parts = [
        _blocks(torch.cat([_pad_first(branch) for branch in weight.chunk(2)])),
        torch.cat([_pad_last(branch) for branch in bias.chunk(2)]),
    ]
    if last:
        return [*parts, _blocks(_pad_first(skip))]
    residual = _pad_first(values[f"{name}.residual.weight"])
    parts.append(_pad_last(values[f"{name}.residual.bias"]))
    return [*parts, _blocks(torch.cat([residual, _pad_first(skip)]))]


def _pad_last(tensor: torch.Tensor) -> torch.Tensor:
    return pad(tensor, (0, -tensor.shape[-1] % _PAD))


def _pad_first(matrix: torch.Tensor) -> torch.Tensor:
    return pad(matrix, (0, 0, 0, -matrix.shape[0] % _PAD))


def _blocks(matrix: torch.Tensor) -> torch.Tensor:
    """Return (outputs, inputs) as consecutive blocks of [input][output], one-dimensional."""
    return torch.cat([block.t().reshape(-1) for block in matrix.split(_BLOCK)])
