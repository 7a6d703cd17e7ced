"""Packs a conditioner into the flat block of weights that the compiled engine computes gate biases with.

The block contains, in this order, vectors and matrices of float32 in the layout of `packing`:

    centre, scale                  (F')             these and the convolutions only with features
    for each convolution over frames
        for each tap, oldest first matrix, W' outputs, F inputs (W after the first convolution)
        bias                       (W')
    classes                        matrix, W' outputs, C inputs; only with classes
    projection                     matrix, P' outputs, W inputs

C, F, W are the classes, the channels of features and the conditioning channels, P is layers * 2 *
dilation_channels; a prime marks padding with zeros to a multiple of 16. The projection includes the
factor in the argument of tanh.
"""

from __future__ import annotations

from wavenet.conditioning.base import DILATIONS, TAPS
from wavenet.engine.packing import Layout, PackedWeights
from wavenet.models.conditioner import LIMIT, Conditioner

_PAD = 16


def pack_conditioner(conditioner: Conditioner) -> PackedWeights:
    """Pack a conditioner's weights; the result shares no memory with it."""
    conditioning = conditioner.conditioning
    tensors = {name: tensor.detach().to("cpu") for name, tensor in conditioner.state_dict().items()}
    layout = Layout("fp32", _PAD)
    convolved = conditioner.features is not None
    if convolved:
        layout.vectors(tensors["centre"][:, 0], tensors["scale"][:, 0])
        for number in range(len(DILATIONS)):
            for tap in range(TAPS):
                layout.matrix(tensors[f"frames.{number}.weight"][:, :, tap])
            layout.vectors(tensors[f"frames.{number}.bias"])
    if conditioning.class_names:
        layout.matrix(tensors["classes.weight"])
    projection = tensors["projection.weight"]
    layout.matrix(projection * (conditioner.gain / LIMIT))
    entries = [
        len(conditioning.class_names),
        conditioner.features.channels(conditioning) if conditioner.features else 0,
        conditioning.conditioning_channels,
        len(projection),
        TAPS,
    ]
    return PackedWeights(layout.data(), entries + list(DILATIONS if convolved else ()))
