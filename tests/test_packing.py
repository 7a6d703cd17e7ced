"""The packed weights, read back by an index computed from the documented layout."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from native_tools import model_of

from wavenet.packing import pack


def up(channels: int) -> int:
    while channels % 16:
        channels += 1
    return channels


class Reader:
    """Walks through the block, handing out vectors and matrices."""

    def __init__(self, data: np.ndarray):
        self.data, self.at = data, 0

    def vector(self, length: int) -> np.ndarray:
        self.at += length
        return self.data[self.at - length : self.at]

    def matrix(self, outputs: int, inputs: int) -> np.ndarray:
        values = self.vector(outputs * inputs)
        result = np.empty((outputs, inputs), np.float32)
        for output in range(outputs):
            first = output // 64 * 64
            width = min(64, outputs - first)
            for index in range(inputs):
                result[output, index] = values[first * inputs + index * width + output - first]
        return result


def split(padded: np.ndarray, *channels: int) -> list[np.ndarray]:
    """Cut the first axis into the named counts, checking that the padding between them is zero."""
    parts, at = [], 0
    for count in channels:
        parts.append(padded[at : at + count])
        assert not padded[at + count : at + up(count)].any()
        at += up(count)
    assert at == len(padded)
    return parts


@pytest.mark.parametrize(
    "shape",
    [
        naive.Shape(16, 5, 7, 9, 11, 2, 1, 3),
        naive.Shape(30, 16, 32, 64, 48, 3, 2, 2),
        naive.Shape(70, 33, 40, 65, 17, 4, 3, 1),
        naive.Shape(2, 1, 1, 1, 1, 2, 1, 1),
    ],
    ids=str,
)
def test_every_weight_is_where_the_layout_says(shape):
    weights = naive.random_weights(shape, np.random.default_rng(0))
    packed = pack(model_of(shape, weights))
    read = Reader(packed.data.numpy())
    found = {
        "embedding.weight": split(
            read.vector(shape.classes * up(shape.residual)).reshape(shape.classes, -1).T, shape.residual
        )[0].T
    }
    skips = []
    layers = len(shape.dilations)
    for layer in range(layers):
        name = f"layers.{layer}"
        dilated = read.matrix(2 * up(shape.dilation), shape.kernel_size * shape.residual)
        found[f"{name}.dilated.weight"] = np.concatenate(split(dilated, shape.dilation, shape.dilation))
        bias = read.vector(2 * up(shape.dilation))
        found[f"{name}.dilated.bias"] = np.concatenate(split(bias, shape.dilation, shape.dilation))
        if layer < layers - 1:
            found[f"{name}.residual.bias"] = split(read.vector(up(shape.residual)), shape.residual)[0]
            output = read.matrix(up(shape.residual) + up(shape.skip), shape.dilation)
            found[f"{name}.residual.weight"], skip = split(output, shape.residual, shape.skip)
        else:
            skip = split(read.matrix(up(shape.skip), shape.dilation), shape.skip)[0]
        skips.append(skip)
    found["skip.weight"] = np.concatenate(skips, axis=1)
    found["skip.bias"] = split(read.vector(up(shape.skip)), shape.skip)[0]
    found["head1.weight"] = split(read.matrix(up(shape.head), shape.skip), shape.head)[0]
    found["head1.bias"] = split(read.vector(up(shape.head)), shape.head)[0]
    found["head2.weight"] = split(read.matrix(up(shape.classes), shape.head), shape.classes)[0]
    found["head2.bias"] = split(read.vector(up(shape.classes)), shape.classes)[0]
    assert read.at == len(read.data)
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_geometry_and_independence_of_the_model():
    shape = naive.Shape(30, 4, 6, 8, 10, 3, 2, 3)
    weights = naive.random_weights(shape, np.random.default_rng(1))
    model = model_of(shape, weights)
    packed = pack(model)
    assert packed.geometry == [1, 30, 4, 6, 8, 10, 3, 6, 1, 2, 4, 1, 2, 4]
    assert packed.data.is_contiguous() and packed.data.dim() == 1
    before = packed.data.clone()
    for parameter in model.parameters():
        parameter.zero_()
    assert packed.data.equal(before)
