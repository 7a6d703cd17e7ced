"""Mu-law: the closed form, monotonicity, and error."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wavenet.audio import mulaw


def closed_form(x: float, classes: int) -> float:
    """Position on the companded scale, in classes, before rounding."""
    mu = classes - 1
    compressed = math.copysign(math.log(1 + mu * abs(x)) / math.log(1 + mu), x)
    return (compressed + 1) / 2 * mu


@given(st.floats(-1, 1, width=32), st.sampled_from([2, 3, 16, 255, 256, 1024, 65536]))
def test_encode_matches_the_closed_form(x, classes):
    got = int(mulaw.encode(np.array([x], dtype=np.float64), classes)[0])
    assert abs(got - closed_form(x, classes)) <= 0.5 + 1e-9
    assert 0 <= got < classes


def test_known_values():
    # With 256 classes, amplitude 0 lies between 127 and 128 and is rounded up.
    assert mulaw.encode(np.array([-1.0, 0.0, 1.0]), 256).tolist() == [0, 128, 255]
    # f(0.5) = ln(128.5) / ln(256) = 0.87571...; (f + 1) / 2 * 255 = 239.15
    assert mulaw.encode(np.array([0.5]), 256).tolist() == [239]


@pytest.mark.parametrize("classes", [2, 16, 255, 256, 1024])
def test_decode_inverts_encode_at_every_class(classes):
    every = np.arange(classes)
    amplitudes = mulaw.decode(every, classes)
    assert amplitudes.dtype == np.float32
    assert np.all(np.diff(amplitudes) > 0)
    assert np.array_equal(mulaw.encode(amplitudes, classes), every)
    assert np.allclose(amplitudes, -amplitudes[::-1], atol=1e-7)
    assert amplitudes[0] == -1 and amplitudes[-1] == 1


def test_decode_is_the_bin_centre():
    for cls in (0, 1, 100, 128, 200, 255):
        assert closed_form(float(mulaw.decode(np.array([cls]), 256)[0]), 256) == pytest.approx(cls, abs=1e-4)


def test_round_trip_error_shrinks_with_amplitude():
    x = np.linspace(-1, 1, 20001)
    error = np.abs(mulaw.decode(mulaw.encode(x, 256), 256) - x)
    # Half a class is ln(256) / 255 of (|x| + 1/255) each way, to first order; the exponential adds a little.
    bound = (np.abs(x) + 1 / 255) * (math.exp(math.log(256) / 255) - 1)
    assert np.all(error <= bound)


def test_tensors_and_arrays_agree():
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 5, 7)).astype(np.float32)
    array, tensor = mulaw.encode(x, 256), mulaw.encode(torch.from_numpy(x), 256)
    assert isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor)
    assert array.dtype == np.int64 and tensor.dtype == torch.int64
    assert np.array_equal(array, tensor.numpy()) and array.shape == x.shape
    assert np.array_equal(mulaw.decode(array, 256), mulaw.decode(tensor, 256).numpy())


def test_monotone():
    x = np.linspace(-1.5, 1.5, 10001)
    assert np.all(np.diff(mulaw.encode(x, 256)) >= 0)


def test_clipping_and_nan():
    assert mulaw.encode(np.array([-7.0, 7.0, np.inf, -np.inf]), 256).tolist() == [0, 255, 255, 0]
    with pytest.raises(ValueError, match="NaN"):
        mulaw.encode(np.array([0.0, np.nan]), 256)
