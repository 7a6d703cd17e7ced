"""Weights as bf16 and int8 store them, and the logits of an int8 network, in float64.

Written from the documented formats; it shares no code with the package.
"""

from __future__ import annotations

import numpy as np

from support import naive


def is_matrix(name: str) -> bool:
    return name.endswith("weight") and not name.startswith("embedding")


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Round to 8 significant bits, ties to even."""
    fraction, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(fraction * 256) / 256, exponent).astype(np.float32)


def to_words(matrix: np.ndarray) -> np.ndarray:
    """Round the matrix of one branch to bf16: outputs o and o + 16 of every 32 share a 32-bit word.

    The upper output is the whole word: the nearest value that ends in the 16 bits of the lower.
    """
    kept = to_bf16(matrix)
    for first in range(0, len(matrix), 32):
        upper = matrix[first + 16 : first + 32]
        tails = kept[first : first + len(upper)].view(np.uint32) >> 16
        near = upper.view(np.uint32) & 0xFFFF0000
        words = np.stack([near - 0x10000, near, near + 0x10000]) | tails
        distance = np.abs(words.view(np.float32).astype(np.float64) - upper)
        best = np.take_along_axis(words, distance.argmin(0)[np.newaxis], 0)[0]
        kept[first + 16 : first + 32] = best.view(np.float32)
    return kept


def as_bf16(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round the matrices of a network to bf16."""
    rounded = dict(weights)
    for name, value in weights.items():
        if is_matrix(name):
            branches = np.split(value, 2) if "dilated" in name else [value]
            rounded[name] = np.concatenate([to_words(branch) for branch in branches])
    return rounded


def integers(matrix: np.ndarray, largest: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows as integers from -largest to largest, and the rows' scales."""
    scale = np.abs(matrix).max(-1, keepdims=True) / largest
    return np.rint(np.divide(matrix, scale, where=scale > 0, out=np.zeros(matrix.shape))), scale


def integers_with_sums(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of weights as integers, and scales whose lower 16 bits are 2^15 + the row's sum."""
    whole, scale = integers(matrix)
    upper = ((scale.astype(np.float32).view(np.uint32) + 0x8000) >> 16) << 16
    scale = (upper + 0x8000).view(np.float32)
    for _ in range(2):
        whole = np.rint(matrix / scale.astype(np.float64))
        scale = (upper + 0x8000 + whole.sum(1, keepdims=True).astype(np.int64)).astype(np.uint32)
        scale = scale.view(np.float32)
    return whole, scale.astype(np.float64)


def as_int8(shape: naive.Shape, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round the matrices of a network to int8; each layer's share of the skip sum is a matrix of its own."""
    rounded = {}
    for name, value in weights.items():
        if not is_matrix(name):
            rounded[name] = value
            continue
        parts = np.split(value, len(shape.dilations), 1) if name == "skip.weight" else [value]
        matrices = [np.multiply(*integers_with_sums(part.astype(np.float64))) for part in parts]
        rounded[name] = np.concatenate(matrices, 1)
    return rounded


def rough_exp(x: np.ndarray) -> np.ndarray:
    """Return exp(x) as the gates of int8 compute it: a cubic polynomial between whole powers of two."""
    power = x / np.log(2)
    whole = np.rint(power)
    rest = power - whole
    return np.exp2(whole) * (1 + rest * (0.69328293 + rest * (0.24221096 + rest * 0.05500893)))


def balance_heads(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return weights that give the same probabilities, with heads that lose less by rounding.

    The mean over classes is subtracted from the last head. The largest weight of each channel between the
    heads moves halfway to their median, on a logarithmic scale and by a factor of at most 4.
    """
    heads = {name: value.astype(np.float64) for name, value in weights.items() if name.startswith("head")}
    weight = heads["head2.weight"] - heads["head2.weight"].mean(axis=0, keepdims=True)
    largest = np.abs(weight).max(axis=0)
    middle = np.sort(largest)[(len(largest) - 1) // 2]
    factor = np.ones_like(largest)
    if middle > 0:
        factor = np.exp(0.5 * np.log(np.clip(largest / middle, 1 / 16, 16)))
    return weights | {
        "head1.weight": factor[:, np.newaxis] * heads["head1.weight"],
        "head1.bias": factor * heads["head1.bias"],
        "head2.weight": weight / factor,
        "head2.bias": heads["head2.bias"] - heads["head2.bias"].mean(),
    }


def int8_logits(shape: naive.Shape, weights: dict[str, np.ndarray], samples: np.ndarray) -> np.ndarray:
    """Return float64 logits of a network that rounds weights and vectors to 8 bits; see `naive.logits`.

    Its gates use `rough_exp`, and its heads are balanced.
    """
    exact = as_int8(shape, balance_heads(weights))

    def product(vectors: np.ndarray, matrix: np.ndarray, largest: int = 127) -> np.ndarray:
        whole, scale = integers(vectors, largest)
        return (whole * scale) @ matrix.astype(np.float64).T

    hidden = exact["embedding.weight"][samples].astype(np.float64)
    skip = np.zeros((len(samples), shape.skip)) + exact["skip.bias"]
    for layer, dilation in enumerate(shape.dilations):
        name = f"layers.{layer}"
        context = (shape.kernel_size - 1) * dilation
        time = len(hidden) - context
        taps = [hidden[tap * dilation : tap * dilation + time] for tap in range(shape.kernel_size)]
        total = product(np.concatenate(taps, 1), exact[f"{name}.dilated.weight"])
        total += exact[f"{name}.dilated.bias"]
        power = rough_exp(-2 * total[:, : shape.dilation])
        output = (1 - power) / (1 + power) / (1 + rough_exp(-total[:, shape.dilation :]))
        share = exact["skip.weight"][:, layer * shape.dilation : (layer + 1) * shape.dilation]
        skip = skip[len(skip) - time :] + product(output, share)
        if f"{name}.residual.weight" in exact:
            residual = product(output, exact[f"{name}.residual.weight"]) + exact[f"{name}.residual.bias"]
            hidden = hidden[context:] + residual
    # Vectors without negative values use the whole range of an unsigned byte.
    middle = product(np.maximum(skip, 0), exact["head1.weight"], 255) + exact["head1.bias"]
    return product(np.maximum(middle, 0), exact["head2.weight"], 255) + exact["head2.bias"]
