"""From a model to the one flat block of weights that the fast backends read.

The block holds, one after the other, vectors of float32 and matrices in the precision asked for:

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
zeros to a multiple of 16 (of 32 in bf16), so that any width is served by whole vectors. The outputs of
`dilated` are the filter branch, padded, then the gate branch, padded; those of `output` the residual path,
then the layer's share of the skip sum. Inputs are never padded.

A matrix is cut into blocks of 64 outputs (the last may be narrower), and each block is stored input by input,
in words of 32 bits. A kernel keeps a block's sums in registers while it reads the weights in order once.

    fp32   `[block][input][output]`
    bf16   `[block][input][output / 32][16][2]`: a word holds outputs o (low half) and o + 16 (high half). A
           shift makes float32 of o, rounded to nearest, ties to even. For o + 16 the word is taken as it is,
           with o in the last 16 bits of its fraction: of all words that end in these, it is the nearest. For
           0 it may be too small for a normal number, which a kernel has to take for 0.
    int8   `[block][input / 4][output][4]`, inputs padded with zeros to a multiple of 4; before the matrix
           stand its scales, float32 (outputs). A weight is scale * integer, and the largest of an output is
           close to 127 times the scale. The last 16 bits of a scale are 2^15 + the sum of the output's
           integers, of which a kernel makes up for moving its inputs up by 128, so that they are unsigned.
           The heads' inputs, which are never negative, it leaves where they are. Heads are balanced before
           they are rounded: see `balance_heads`.

In fp32 the block is a float32 tensor, else one of bytes, little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from wavenet.config import WaveNetConfig

if TYPE_CHECKING:
    from wavenet.models.wavenet import WaveNet

LAYOUTS = {"fp32": 1, "bf16": 2, "int8": 3}
"""By precision, the first entry of a geometry: names a layout above."""

CPU_PRECISIONS = tuple(LAYOUTS)

_PADS = {"fp32": 16, "bf16": 32, "int8": 16}
_BLOCK = 64


@dataclass(frozen=True)
class PackedWeights:
    """A network's weights as the operators of `torch.ops.wavenet` take them.

    Attributes
    ----------
    data : float32 tensor (values,), or uint8 tensor (bytes,)
    geometry : list of int
        Layout, quantization_channels, residual_channels, dilation_channels, skip_channels,
        head_channels, kernel_size, layers, and each layer's dilation.
    """

    data: torch.Tensor
    geometry: list[int]


def pack(model: WaveNet, precision: str = "fp32") -> PackedWeights:
    """Pack a model's weights in a precision of `CPU_PRECISIONS`; the result shares no memory with it."""
    return pack_tensors(model.config, model.state_dict(), precision)


def pack_tensors(
    config: WaveNetConfig, tensors: Mapping[str, torch.Tensor], precision: str = "fp32"
) -> PackedWeights:
    """Pack weights by their names and shapes in a `WaveNet`'s state dict."""
    values = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in tensors.items()}
    layout = Layout(precision, _PADS[precision])
    fill(layout, config, values)
    return PackedWeights(layout.data(), geometry(config, LAYOUTS[precision]))


def geometry(config: WaveNetConfig, layout: int) -> list[int]:
    """Return the geometry of a network whose block has a layout."""
    return [
        layout,
        config.quantization_channels,
        config.residual_channels,
        config.dilation_channels,
        config.skip_channels,
        config.head_channels,
        config.kernel_size,
        config.layers,
        *config.dilations,
    ]


def fill(layout: Layout, config: WaveNetConfig, values: Mapping[str, torch.Tensor]) -> None:
    """Add float32 weights on the CPU, by their names in a `WaveNet`'s state dict, to an empty block."""
    layout.vectors(values["embedding.weight"])
    skips = values["skip.weight"].split(config.dilation_channels, dim=1)
    for index in range(config.layers):
        _pack_layer(layout, values, f"layers.{index}", skips[index], last=index == config.layers - 1)
    layout.vectors(values["skip.bias"])
    heads = {name: value for name, value in values.items() if name.startswith("head")}
    if layout.precision == "int8":
        heads = balance_heads(heads)
    for head in ("head1", "head2"):
        layout.matrix(heads[f"{head}.weight"])
        layout.vectors(heads[f"{head}.bias"])


def balance_heads(heads: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return heads with the same probabilities and a smaller error when rounded to int8.

    A part that the logits of all classes share changes no probability, so the mean of all classes' weights
    and biases is subtracted. The values between the heads are positive or zero, so channels can be rescaled:
    if the largest weight of a channel is m times the median over channels, `head1` scales the channel by
    sqrt(m) (limited to a factor of 4 in either direction), and `head2`
    divides its weights by the same factor.

    Parameters
    ----------
    heads : mapping of str to float32 tensor
        `weight` (outputs, inputs) and `bias` (outputs,) of `head1` and `head2`.
    """
    weight = heads["head2.weight"] - heads["head2.weight"].mean(0)
    largest = weight.abs().amax(0)
    middle = largest.median()
    moved = torch.ones_like(largest) if middle == 0 else (largest / middle).sqrt().clamp(0.25, 4.0)
    return {
        "head1.weight": heads["head1.weight"] * moved[:, None],
        "head1.bias": heads["head1.bias"] * moved,
        "head2.weight": weight / moved,
        "head2.bias": heads["head2.bias"] - heads["head2.bias"].mean(),
    }


def _pack_layer(
    layout: Layout, values: Mapping[str, torch.Tensor], name: str, skip: torch.Tensor, last: bool
) -> None:
    newest = values["embedding.weight"].shape[1]
    layout.dilated(newest, *values[f"{name}.dilated.weight"].chunk(2))
    layout.vectors(*values[f"{name}.dilated.bias"].chunk(2))
    if last:
        layout.matrix(skip)
    else:
        layout.vectors(values[f"{name}.residual.bias"])
        layout.matrix(values[f"{name}.residual.weight"], skip)


class Layout:
    """A block of weights as it grows."""

    def __init__(self, precision: str, padding: int):
        self.precision = precision
        self.pad = padding
        self.parts: list[torch.Tensor] = []

    def data(self) -> torch.Tensor:
        """Return the block."""
        if self.precision == "fp32":
            return torch.cat([part.reshape(-1) for part in self.parts])
        # A view as bytes needs a last dimension of its own.
        return torch.cat([part.reshape(-1).contiguous().view(torch.uint8) for part in self.parts])

    def vectors(self, *vectors: torch.Tensor) -> None:
        """Add float32 vectors, padding the last dimension of each."""
        self.parts += [pad(vector, (0, -vector.shape[-1] % self.pad)) for vector in vectors]

    def dilated(self, newest: int, *matrices: torch.Tensor) -> None:
        """Add a dilated convolution's matrices; the number of inputs of its newest tap is not needed here."""
        self.matrix(*matrices)

    def matrix(self, *matrices: torch.Tensor) -> None:
        """Add matrices (outputs, inputs) as one, padding the outputs of each."""
        matrix = torch.cat([pad(each, (0, 0, 0, -each.shape[0] % self.pad)) for each in matrices])
        self.store(matrix)

    def store(self, matrix: torch.Tensor) -> None:
        """Add a matrix whose outputs are padded."""
        store = {"fp32": self._fp32, "bf16": self._bf16, "int8": self._int8}[self.precision]
        store(matrix)

    def _fp32(self, matrix: torch.Tensor) -> None:
        self.parts += [block.t() for block in matrix.split(_BLOCK)]

    def _bf16(self, matrix: torch.Tensor) -> None:
        for block in matrix.split(_BLOCK):
            lower, upper = block.t().unflatten(1, (-1, 2, 16)).unbind(2)
            self.parts.append(torch.stack(_bf16_pairs(lower, upper), 3))

    def _int8(self, matrix: torch.Tensor) -> None:
        integers, scale = _int8_rows(matrix)
        self.parts.append(scale)
        integers = pad(integers, (0, -matrix.shape[1] % 4)).to(torch.int8)
        for block in integers.split(_BLOCK):
            self.parts.append(block.unflatten(1, (-1, 4)).transpose(0, 1))


def _bf16_pairs(lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the halves (int16) of words: bfloat16 `lower`, and what makes `upper` of the whole word."""
    low = lower.to(torch.bfloat16).view(torch.int16)
    bits = upper.contiguous().view(torch.int32)
    tail = low.int() & 0xFFFF
    # The word that begins as the weight does, and its neighbours, which are of the same sign but around 0.
    words = [(bits & -0x10000 | tail) + step for step in (-0x10000, 0, 0x10000)]
    far = torch.stack([(word.view(torch.float32).double() - upper.double()).abs() for word in words])
    far = torch.where(torch.isnan(far), torch.inf, far)
    nearest = torch.stack(words).gather(0, far.argmin(0, keepdim=True))[0]
    return low, torch.where(torch.isfinite(upper), nearest >> 16, 0x7F80).to(torch.int16)


def _int8_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the integers that stand for the rows of a matrix, and the scale of each row."""
    largest = matrix.abs().amax(1, keepdim=True)
    largest = torch.where(torch.isfinite(largest), largest, torch.nan)
    bits = (largest / 127).view(torch.int32)

    def rounded(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Where all weights are zero, or one is not finite, the integers are zero; the scale tells which.
        integers = torch.nan_to_num(matrix / scale, 0.0, 0.0, 0.0).round().clamp(-127, 127)
        return integers, integers.sum(1, keepdim=True).to(torch.int32)

    while True:
        # With a sum of 0 at most 2^16 steps of a float more than the largest weight / 127.
        middle = (bits + 0x8000 & -0x10000) + 0x8000
        _, sums = rounded(middle.view(torch.float32))
        # A second time with a scale that then moves no more, but by a last bit or two.
        integers, sums = rounded((middle + sums.clamp(-0x7FFF, 0x7FFF)).view(torch.float32))
        too_large = sums.abs() > 0x7FFF
        if not too_large.any():
            return integers, (middle + sums).view(torch.float32)
        # Coarser integers by about a quarter, until their sum fits 16 bits.
        bits = torch.where(too_large, bits + (1 << 21), bits)
