"""The packed weights, read back by an index computed from the documented layout."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from support import naive, rounding
from support.engines import model_of

from wavenet.engine.packing import pack


def pad_up(channels: int, pad: int) -> int:
    while channels % pad:
        channels += 1
    return channels


class Reader:
    """Walks through the block, handing out vectors and matrices."""

    def __init__(self, data: np.ndarray):
        self.data, self.at = data.view(np.uint8), 0

    def take(self, count: int, dtype: type) -> np.ndarray:
        start, self.at = self.at, self.at + count * np.dtype(dtype).itemsize
        return self.data[start : self.at].view(dtype)

    def vector(self, length: int) -> np.ndarray:
        return self.take(length, np.float32)

    def matrix(self, outputs: int, inputs: int) -> np.ndarray:
        values = self.vector(outputs * inputs)
        result = np.empty((outputs, inputs), np.float32)
        for output in range(outputs):
            first = output // 64 * 64
            width = min(64, outputs - first)
            for index in range(inputs):
                result[output, index] = values[first * inputs + index * width + output - first]
        return result


class Bf16Reader(Reader):
    """The same with matrices in bf16."""

    def matrix(self, outputs: int, inputs: int) -> np.ndarray:
        words = self.take(outputs * inputs // 2, np.uint32)
        result = np.empty((outputs, inputs), np.uint32)
        for output in range(outputs):
            first = output // 64 * 64
            width = min(64, outputs - first)
            pair, rest = divmod(output - first, 32)
            for index in range(inputs):
                word = words[(first * inputs + index * width) // 2 + 16 * pair + rest % 16]
                result[output, index] = word << 16 if rest < 16 else word
        values = result.view(np.float32)
        # Beside zeros stand numbers that are too small to be normal, which the sample loop takes for zeros.
        values[np.abs(values) < 2.0**-126] = 0
        return values


class Int8Reader(Reader):
    """The same with matrices in int8."""

    def matrix(self, outputs: int, inputs: int) -> np.ndarray:
        scale = self.vector(outputs)
        fours = -(-inputs // 4)
        values = self.take(outputs * fours * 4, np.int8)
        result = np.zeros((outputs, fours * 4), np.float32)
        for output in range(outputs):
            first = output // 64 * 64
            width = min(64, outputs - first)
            for index in range(fours * 4):
                word = first * fours + index // 4 * width + output - first
                result[output, index] = values[word * 4 + index % 4]
        assert not result[:, inputs:].any()
        np.testing.assert_array_equal(scale.view(np.int32) & 0xFFFF, 32768 + result.sum(1))
        assert np.abs(result).max(initial=0) <= 127
        return result[:, :inputs] * scale[:, None]


READERS = {"fp32": (Reader, 16), "bf16": (Bf16Reader, 32), "int8": (Int8Reader, 16)}


def split_padded(padded: np.ndarray, *channels: int, pad: int) -> list[np.ndarray]:
    """Cut the first axis into the named counts, checking that the padding between them is zero."""
    parts, at = [], 0
    for count in channels:
        parts.append(padded[at : at + count])
        assert not padded[at + count : at + pad_up(count, pad)].any()
        at += pad_up(count, pad)
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
@pytest.mark.parametrize("precision", READERS)
def test_every_weight_follows_the_layout(shape, precision):
    weights = naive.random_weights(shape, np.random.default_rng(0))
    packed = pack(model_of(shape, weights), precision)
    reader, pad = READERS[precision]
    read = reader(packed.data.numpy())
    up, split = functools.partial(pad_up, pad=pad), functools.partial(split_padded, pad=pad)
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
    kept = rounding.balance_heads(weights) if precision == "int8" else weights
    for name, value in kept.items():
        if precision == "fp32" or name.endswith("bias") or name.startswith("embedding"):
            if kept is weights or not name.startswith("head"):
                np.testing.assert_array_equal(found[name], value, err_msg=name)
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
            continue
        error = np.abs(found[name] - value)
        if precision == "bf16":
            # Half of the last of 8 bits; all of it below a power of two, where the next is twice as far.
            last = np.exp2(np.floor(np.log2(np.abs(value))) - 7)
            below = np.exp2(np.floor(np.log2(np.abs(value))) + 1) - np.abs(value)
            assert (error <= last * np.where(below < last, 1, 0.5)).all(), name
            continue
        parts = len(shape.dilations) if name == "skip.weight" else 1
        for part, expected in zip(np.split(error, parts, 1), np.split(value, parts, 1), strict=True):
            # Half a step; a scale's last 16 bits, which are not its own, make steps larger by at most 2^-7.
            step = np.abs(expected).max(1, keepdims=True) / 127 * (1 + 2**-7)
            assert (part <= step * 0.5001).all(), name


def test_geometry_and_independence_of_the_model():
    shape = naive.Shape(30, 4, 6, 8, 10, 3, 2, 3)
    weights = naive.random_weights(shape, np.random.default_rng(1))
    model = model_of(shape, weights)
    packed = pack(model)
    assert packed.geometry == [1, 30, 4, 6, 8, 10, 3, 6, 1, 2, 4, 1, 2, 4]
    assert packed.data.is_contiguous() and packed.data.dim() == 1
    before = packed.data.clone()
    others = {precision: pack(model, precision) for precision in ("bf16", "int8")}
    assert [others[each].geometry for each in others] == [
        [2, *packed.geometry[1:]],
        [3, *packed.geometry[1:]],
    ]
    assert all(each.data.dtype == torch.uint8 and each.data.is_contiguous() for each in others.values())
    for parameter in model.parameters():
        parameter.zero_()
    assert packed.data.equal(before)


def test_wide_int8_sums_use_coarser_integers():
    shape = naive.Shape(4, 300, 2, 2, 2, 2, 1, 1)
    weights = naive.random_weights(shape, np.random.default_rng(2))
    weights["layers.0.dilated.weight"][:2] = [[0.5], [-0.25]]
    weights["layers.0.dilated.weight"][2] = np.abs(weights["layers.0.dilated.weight"][2])
    packed = pack(model_of(shape, weights), "int8")
    read = Int8Reader(packed.data.numpy())
    read.vector(4 * 304)
    found = read.matrix(32, 600)  # which compares the sums that the scales carry
    expected = weights["layers.0.dilated.weight"]
    # A sum of 600 integers of one sign allows for 54 each.
    for row, value in ((0, expected[0]), (1, expected[1])):
        assert np.abs(found[row] - value).max() <= np.abs(value).max() / 40 / 2
    for row, value in ((16, expected[2]), (17, expected[3])):
        assert np.abs(found[row] - value).max() <= np.abs(value).max() / 125 / 2


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_weights_that_are_not_finite_stay_so(precision, value):
    shape = naive.Shape(4, 16, 20, 2, 2, 2, 1, 1)
    weights = naive.random_weights(shape, np.random.default_rng(3))
    weights["layers.0.dilated.weight"][[0, 17, 25]] = value
    reader, pad = READERS[precision]
    read = reader(pack(model_of(shape, weights), precision).data.numpy())
    read.vector(4 * pad_up(16, pad))
    with np.errstate(invalid="ignore"):
        found = read.matrix(2 * pad_up(20, pad), 32)
    rows = [0, 17, pad_up(20, pad) + 5]
    assert not np.isfinite(found[rows]).any()
    assert np.isfinite(np.delete(found, rows, 0)).all()
