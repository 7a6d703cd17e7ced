"""The sample loop as numba compiles it: one entry, `_run`, for one or more streams of a task.

Importing this file imports numba, so only `wavenet.engine.numba` does it, on first use. All compiled code is
in this file, because numba checks only the date of this file to decide whether its cache is valid.

Weights come as `packing` lays them out in fp32. Every output is the sum of its inputs in their stored
order, so a stream's values depend on nothing but its own history.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Products may be contracted with the sum that follows, nothing may be reordered; a division by zero is
# infinite rather than an exception, which would keep loops from being vectorised.
_OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy", "no_cfunc_wrapper": True}
# Only the entry is called from Python, and wrappers take a third of the time to compile.
_INNER = {**_OPTIONS, "no_cpython_wrapper": True}

_LANES = 16  # what the outputs of a packed matrix are padded to
_BLOCK = 64  # outputs whose sums are held in registers


class Network(NamedTuple):
    """Widths, padded ones (to 16) among them, and places in the weights."""

    classes: int
    residual: int
    dilation: int
    skip: int
    head: int
    taps: int
    layers: int
    classes_padded: int
    residual_padded: int
    dilation_padded: int
    skip_padded: int
    head_padded: int
    queue_steps: int
    skip_bias: int
    head1: int
    head1_bias: int
    head2: int
    head2_bias: int

    def scratch(self) -> int:
        """Return how many floats a worker needs: see `_step` and `_run`."""
        inputs = self.taps * self.residual + self.residual_padded + self.skip_padded
        return inputs + 3 * self.dilation_padded + self.head_padded + 2 * self.classes_padded


# The columns of an array `layers`: steps, steps, the ring's first row, and places in the weights.
DILATION, DEPTH, RING, DILATED, DILATED_BIAS, RESIDUAL_BIAS, OUTPUT = range(7)


# -- vector code --------------------------------------------------------------------------------------


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Return the address of one element of an array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _copying(typing_context, to, to_at, source, source_at, count):
    """Copy `count` floats from one array to another."""

    def generate(context, builder, signature, arguments):
        to, to_at, source, source_at, count = arguments
        target = _pointer(context, builder, signature.args[0], to, to_at)
        origin = _pointer(context, builder, signature.args[2], source, source_at)
        cgutils.raw_memcpy(builder, target, origin, count, 4)
        return context.get_dummy_value()

    return types.void(to, types.int64, source, types.int64, types.int64), generate


_copy: Any = intrinsic(_copying)


def _multiplying_block(typing_context, vectors, weights, at, values, inputs, count, sums):
    """Add to `vectors` times 16 sums `count` inputs times their weights, input by input.

    Both inputs and sums are places in `values`. Written as vectors, because the vectoriser neither finds that
    the sums fit the registers nor spares the test whether rows overlap.
    """
    number = vectors.literal_value
    vector = ir.VectorType(ir.FloatType(), _LANES)

    def generate(context, builder, signature, arguments):
        _, weights, at, values, inputs, count, sums = arguments
        kinds = signature.args
        row = _pointer(context, builder, kinds[1], weights, at)
        source = _pointer(context, builder, kinds[3], values, inputs)
        target = _pointer(context, builder, kinds[3], values, sums)

        def place(base, index):
            here = builder.gep(base, [ir.Constant(ir.IntType(64), _LANES * index)])
            return builder.bitcast(here, vector.as_pointer())

        held = [
            cgutils.alloca_once_value(builder, builder.load(place(target, each), align=4))
            for each in range(number)
        ]
        width = ir.Constant(ir.IntType(64), _LANES * number)
        with cgutils.for_range(builder, count) as loop:
            scalar = builder.load(builder.gep(source, [loop.index]))
            undefined = ir.Constant(vector, ir.Undefined)
            first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
            spread = builder.shuffle_vector(first, undefined, lanes)
            here = builder.gep(row, [builder.mul(loop.index, width)])
            for each in range(number):
                product = builder.fmul(builder.load(place(here, each), align=4), spread, flags=("contract",))
                total = builder.fadd(builder.load(held[each]), product, flags=("contract",))
                builder.store(total, held[each])
        for each in range(number):
            builder.store(builder.load(held[each]), place(target, each), align=4)
        return context.get_dummy_value()

    signature = types.void(vectors, weights, types.int64, values, types.int64, types.int64, types.int64)
    return signature, generate


_multiply_block: Any = intrinsic(prefer_literal=True)(_multiplying_block)

# -- nonlinearities -----------------------------------------------------------------------------------

_F0, _F1, _F2 = np.float32(0), np.float32(1), np.float32(2)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)
_FURTHEST = np.float32(30)
_LOG2_E = np.float32(1.44269504)
_SHIFT = np.float32(12582912)
_LN2_HIGH, _LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)
_C5, _C4 = np.float32(0.0013882395578548312), np.float32(0.008367180824279785)
_C3, _C2 = np.float32(0.04166722297668457), np.float32(0.16666539013385773)
_C1 = np.float32(0.4999999701976776)
_ONE_BITS = np.int32(0x3F800000)
_MAX = np.float32(np.finfo(np.float32).max)


@njit(**_INNER)
def _clamped(x, low, high):
    """Return x between limits; NaN passes through, as a comparison with it is false."""
    x = low if x < low else x
    return high if x > high else x


@njit(**_INNER)
def _exponential(x):
    """Return scale and fraction of exp(x) = scale * (1 + fraction), for x in [-87, 88].

    The scale is a power of two; the relative error of the fraction is 1.8e-8 before rounding, by minimax
    coefficients on half a power of two to either side.
    """
    # Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    shifted = x * _LOG2_E + _SHIFT
    n = shifted - _SHIFT
    # ln(2) in two parts; the product of n and the first is exact.
    r = n * _LN2_HIGH + x
    r = n * _LN2_LOW + r
    q = _C5 * r + _C4
    q = q * r + _C3
    q = q * r + _C2
    q = q * r + _C1
    bits = (np.float32(shifted).view(np.int32) << np.int32(23)) + _ONE_BITS
    scale = np.int32(bits).view(np.float32)
    return scale, q * (r * r) + r


@njit(**_INNER)
def _exp(x):
    """Return exp(x); zero where it would be less than the smallest normal number."""
    scale, fraction = _exponential(_clamped(x, _LOWEST, _HIGHEST))
    return _F0 if x < _LOWEST else scale * fraction + scale


@njit(**_INNER)
def _gate(filtered, gated, to):
    """Write tanh(filtered) * sigmoid(gated), by expm1(-2 filtered) so that small values keep their digits."""
    for c in range(len(to)):
        # Beyond 15 tanh is 1 to more digits than a float has.
        scale, fraction = _exponential(_clamped(-_F2 * filtered[c], -_FURTHEST, _FURTHEST))
        m = scale * fraction + (scale - _F1)
        to[c] = (_F0 - m) / ((m + _F2) * (_F1 + _exp(_F0 - gated[c])))


@njit(**_INNER)
def _rectify(values):
    for c in range(len(values)):
        values[c] = _F0 if values[c] < _F0 else values[c]


@njit(**_INNER)
def _add(to, values):
    for c in range(len(to)):
        to[c] += values[c]


@njit(**_INNER)
def _mix(to, here, following, weight):
    for c in range(len(to)):
        to[c] += (_F1 - weight) * here[c] + weight * following[c]


# -- one step -----------------------------------------------------------------------------------------


@njit(**_INNER)
def _multiply(weights, at, values, inputs, count, sums, outputs):
    """Add a packed matrix times `count` inputs to `outputs` sums; both are places in `values`."""
    for _ in range(outputs // _BLOCK):
        _multiply_block(4, weights, at, values, inputs, count, sums)
        at += _BLOCK * count
        sums += _BLOCK
    rest = outputs % _BLOCK
    if rest == 48:
        _multiply_block(3, weights, at, values, inputs, count, sums)
    elif rest == 32:
        _multiply_block(2, weights, at, values, inputs, count, sums)
    elif rest == 16:
        _multiply_block(1, weights, at, values, inputs, count, sums)


@njit(**_INNER)
def _add_frame(net, layer, activation, gate, position, hop, start, linear):
    """Add the frame of conditioning that holds at a position; see `wavenet.models.gate_bias.GateBias`."""
    offset = position - start
    frame = offset // hop
    here, after = _clamped(frame, 0, len(gate) - 1), _clamped(frame + 1, 0, len(gate) - 1)
    weight = np.float32(offset - frame * hop) / np.float32(hop)
    for half in range(2):
        to = activation[half * net.dilation_padded :]
        first = gate[here, layer, half * net.dilation :]
        second = gate[after, layer, half * net.dilation :]
        for c in range(net.dilation):
            to[c] += (_F1 - weight) * first[c] + weight * second[c] if linear else first[c]


@njit(**_INNER)
def _step(weights, net, layers, values, queue, slots, sample, gate, position, hop, start, linear):
    """Feed a sample to one stream; return where in `values` the logits of the next one stand."""
    hidden = net.classes_padded  # after what `_draw` needs
    skip = hidden + net.residual_padded
    inputs = skip + net.skip_padded
    activation = inputs + net.taps * net.residual
    gated = activation + 2 * net.dilation_padded
    head = gated + net.dilation_padded
    logits = head + net.head_padded
    _copy(values, hidden, weights, sample * net.residual_padded, net.residual_padded)
    _copy(values, skip, weights, net.skip_bias, net.skip_padded)
    for layer in range(net.layers):
        place = layers[layer]
        for tap in range(net.taps - 1):
            slot = slots[layer] - (net.taps - 1 - tap) * place[DILATION]
            slot += place[DEPTH] if slot < 0 else 0
            old = (place[RING] + slot) * net.residual
            _copy(values, inputs + tap * net.residual, queue, old, net.residual)
        _copy(values, inputs + (net.taps - 1) * net.residual, values, hidden, net.residual)
        _copy(queue, (place[RING] + slots[layer]) * net.residual, values, hidden, net.residual)
        slots[layer] = slots[layer] + 1 if slots[layer] + 1 < place[DEPTH] else 0
        _copy(values, activation, weights, place[DILATED_BIAS], 2 * net.dilation_padded)
        if hop > 0:
            _add_frame(net, layer, values[activation:], gate, position, hop, start, linear)
        count = net.taps * net.residual
        _multiply(weights, place[DILATED], values, inputs, count, activation, 2 * net.dilation_padded)
        _gate(values[activation:], values[activation + net.dilation_padded : gated], values[gated:head])
        if place[RESIDUAL_BIAS] < 0:
            _multiply(weights, place[OUTPUT], values, gated, net.dilation, skip, net.skip_padded)
        else:
            _add(values[hidden:skip], weights[place[RESIDUAL_BIAS] :])
            outputs = net.residual_padded + net.skip_padded
            _multiply(weights, place[OUTPUT], values, gated, net.dilation, hidden, outputs)
    _rectify(values[skip:inputs])
    _copy(values, head, weights, net.head1_bias, net.head_padded)
    _multiply(weights, net.head1, values, skip, net.skip, head, net.head_padded)
    _rectify(values[head:logits])
    _copy(values, logits, weights, net.head2_bias, net.classes_padded)
    _multiply(weights, net.head2, values, head, net.head, logits, net.classes_padded)
    return logits


# -- drawing ------------------------------------------------------------------------------------------


@njit(**_INNER)
def _finite(values):
    count = 0
    for index in range(len(values)):
        count += abs(values[index]) <= _MAX
    return count == len(values)


@njit(**_INNER)
def _before(logits, a, b):
    """Return whether class a is more probable; by logits, as distinct ones can round to equal weights."""
    return logits[a] > logits[b] or (logits[a] == logits[b] and a < b)


@njit(**_INNER)
def _sift(order, logits, count, parent):
    """Let the class at a place of a heap (the first `count` of `order`) sink to where it belongs."""
    moving = order[parent]
    while 2 * parent + 1 < count:
        child = 2 * parent + 1
        if child + 1 < count and _before(logits, order[child + 1], order[child]):
            child += 1
        if _before(logits, moving, order[child]):
            break
        order[parent] = order[child]
        parent = child
    order[parent] = moving


@njit(**_INNER)
def _truncate(logits, weights, order, top_k, top_p):
    """Zero the weights of the classes that top_k and then top_p drop."""
    classes = len(logits)
    kept = top_k if 0 < top_k < classes else classes
    sorted_already = kept if kept < classes else 0
    for index in range(classes):
        order[index] = index
    # Few classes hold most of the probability: taking them from a heap beats sorting all. The most probable
    # one goes to the end of `order`, the next before it, and so on.
    top = classes // 2
    while top > 0:
        top -= 1
        _sift(order, logits, classes, top)
    taken, total, mass = 0, 0.0, 0.0
    for index in range(classes if sorted_already == 0 else 0):
        total += weights[index]
    for turn in range(2):
        rank = 0
        limit = sorted_already if turn == 0 else kept
        while rank < limit and (turn == 0 or rank == 0 or top_p >= 1 or mass < top_p * total):
            if rank == taken:
                taken += 1
                last = classes - taken
                order[0], order[last] = order[last], order[0]
                _sift(order, logits, last, top)
            weight = weights[order[classes - 1 - rank]]
            if turn == 0:
                total += weight
            else:
                mass += weight
            rank += 1
    for index in range(classes - rank):
        weights[order[index]] = _F0


@njit(**_INNER)
def _draw(logits, weights, order, uniform, temperature, top_k, top_p):
    """Draw a class by inverting the cumulative distribution, summed in class order in double."""
    classes = len(logits)
    best = 0
    for index in range(1, classes):
        if logits[index] > logits[best]:
            best = index
    if temperature == 0:
        return best
    # What a float can hold well gives the limits: the best class alone, and all classes alike.
    divisor = np.float32(_clamped(temperature, 1e-30, 1e30))
    top = logits[best]
    for index in range(classes):
        weights[index] = _exp((logits[index] - top) / divisor)
    if 0 < top_k < classes or top_p < 1:
        _truncate(logits, weights, order, top_k, top_p)
    total = 0.0
    for index in range(classes):
        total += weights[index]
    threshold = uniform * total
    cumulative = 0.0
    last = 0
    for index in range(classes):
        cumulative += weights[index]
        if cumulative > threshold:
            return index
        if weights[index] > 0:
            last = index
    return last


# -- the loop -----------------------------------------------------------------------------------------


def _run(
    first, end, weights, net, layers, values, slots, order, queues, position, last_sample, samples, uniforms,
    logits, temperature, top_k, top_p, gate, hop, start, linear, failed,
):  # fmt: skip
    """Run the streams from `first` to before `end`, one after the other.

    With `logits` (streams, steps, classes), `samples` (streams, steps) are inputs; with an empty `logits`
    samples are drawn with `uniforms` and each stream's settings (streams,). If `hop` is not 0, `gate` is
    (1 or streams, frames, layers, 2 * dilation) and `start` (1 or streams,). A stream whose logits are not
    finite stops, and its position replaces the -1 in `failed`.
    """
    steps = samples.shape[1]
    for row in range(first, end):
        for layer in range(net.layers):
            slots[layer] = position[row] % layers[layer, DEPTH]
        frames = gate[row if len(gate) > 1 else 0]
        begin = start[row if len(start) > 1 else 0]
        for step in range(steps):
            at = _step(
                weights, net, layers, values, queues[row], slots, last_sample[row], frames, position[row],
                hop, begin, linear,
            )  # fmt: skip
            found = values[at : at + net.classes]
            if not _finite(found):
                failed[row] = position[row]
                break
            if len(logits) > 0:
                _copy(logits[row, step], 0, found, 0, net.classes)
            else:
                drawing = values[: net.classes]
                samples[row, step] = _draw(
                    found, drawing, order, uniforms[row, step], temperature[row], top_k[row], top_p[row]
                )
            last_sample[row] = samples[row, step]
            position[row] += 1


def _array(kind: Any, dimensions: int) -> Any:
    return types.Array(kind, dimensions, "C")


_SIGNATURE = types.void(
    types.int64, types.int64, _array(types.float32, 1),
    types.NamedUniTuple(types.int64, len(Network._fields), Network), _array(types.int64, 2),
    _array(types.float32, 1), _array(types.int64, 1), _array(types.int64, 1), _array(types.float32, 2),
    _array(types.int64, 1), _array(types.int64, 1), _array(types.int64, 2), _array(types.float32, 2),
    _array(types.float32, 3), _array(types.float64, 1), _array(types.int64, 1), _array(types.float64, 1),
    _array(types.float32, 4), types.int64, _array(types.int64, 1), types.boolean, _array(types.int64, 1),
)  # fmt: skip


@functools.cache
def compiled() -> Callable[..., None]:
    """Return `_run` compiled, from the disk if it was kept there.

    Types are fixed beforehand, so that a call with others is an error and not another compilation.
    """
    options = {"nogil": True, **_OPTIONS}
    try:
        return njit(_SIGNATURE, cache=True, **options)(_run)
    except Exception:
        # Numba has as many exceptions for a folder that it may not write to, a full disk and a damaged file.
        # Without them it works just as well; an error that does not come of them comes again.
        return njit(_SIGNATURE, **options)(_run)
