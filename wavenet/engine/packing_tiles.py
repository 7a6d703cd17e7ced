"""From a model to the block of weights that CUDA's tensor cores read.

The block is that of `packing`, bytes, little-endian, with vectors of float32 padded to a multiple of
16; but a matrix is cut into tiles of 16 outputs by 16 inputs in 16 bits, stored output by output and, within
that, input by input. Inputs are padded with zeros to whole tiles; those of a dilated matrix in two parts, the
old taps and the newest.

A tile is 32 lanes of 8 numbers, lane l = 4 g + t having, for w = 0 to 3 and h = 0 and 1 (PTX ISA, "Matrix
Fragments for mma.m16n8k16"), as number 2 w + h

    output g + 8 (w mod 2), input 2 t + h + 8 (w div 2)

The numbers are fp16; or bf16, which has fp16's size and float32's range, if a weight is beyond fp16's.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from wavenet.engine.packing import Layout, PackedWeights, fill, geometry
from wavenet.models.wavenet import WaveNet

TILE_LAYOUTS = {torch.float16: 4, torch.bfloat16: 5}
"""By the type of a tile's numbers, the first entry of a geometry."""

_TILE = 16


def pack_tiles(model: WaveNet) -> PackedWeights:
    """Pack a model's weights for tensor cores; the result shares no memory with it."""
    tensors = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in model.state_dict().items()}
    largest = max(float(tensor.abs().max()) for name, tensor in tensors.items() if name.endswith("weight"))
    # Of what is not finite, either type keeps that.
    dtype = torch.bfloat16 if torch.finfo(torch.float16).max < largest < torch.inf else torch.float16
    layout = TileLayout(dtype)
    fill(layout, model.config, tensors)
    return PackedWeights(layout.data(), geometry(model.config, TILE_LAYOUTS[dtype]))


class TileLayout(Layout):
    """A block of weights in tiles."""

    def __init__(self, dtype: torch.dtype):
        super().__init__("tiles", _TILE)
        self.dtype = dtype

    def dilated(self, newest: int, *matrices: torch.Tensor) -> None:
        """Add a dilated convolution's matrices, whose last `newest` inputs are those of the newest tap."""
        parts = [matrix.split([matrix.shape[1] - newest, newest], dim=1) for matrix in matrices]
        self.matrix(*[torch.cat([_whole(old), _whole(new)], dim=1) for old, new in parts])

    def store(self, matrix: torch.Tensor) -> None:
        """Add a matrix whose outputs are padded."""
        # (tile, w mod 2, g; tile, w div 2, t, h)
        tiles = _whole(matrix).to(self.dtype)
        tiles = tiles.reshape(tiles.shape[0] // 16, 2, 8, tiles.shape[1] // 16, 2, 4, 2)
        self.parts.append(tiles.permute(0, 3, 2, 5, 4, 1, 6))


def _whole(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix with its inputs padded to whole tiles."""
    return pad(matrix, (0, -matrix.shape[1] % _TILE))
