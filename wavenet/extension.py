"""Loads the compiled extension `wavenet._C` and reads the record of its build."""

from __future__ import annotations

import functools
import importlib.machinery
import json
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parent


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if it is empty."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


@functools.cache
def load_extension() -> str | None:
    """Load `wavenet._C` once and register its operators; return None, or why it is not available."""
    reason = _build_reason()
    if reason is not None:
        return f"the extension was not built: {reason}"
    paths = [_PACKAGE / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    found = [path for path in paths if path.exists()]
    if not found:
        return "the extension was not built: install a C++ compiler, then the package again"
    try:
        torch.ops.load_library(str(found[0]))
    except (OSError, RuntimeError) as error:
        return f"the extension {found[0]} could not be loaded: {first_line(error)}"
    try:
        _register_fakes()
    except RuntimeError as error:
        return (
            f"the extension {found[0]} is of another version; install the package again ({first_line(error)})"
        )
    return None


def build_info() -> dict[str, Any] | None:
    """Return the record of the extension's build, or None without one."""
    try:
        return json.loads((_PACKAGE / "_build_info.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _build_reason() -> str | None:
    info = build_info()
    return None if info is None or info["extension"] else info["reason"]


def _register_fakes() -> None:
    """Register the operators' output shapes with torch, for tracing and compilation."""

    @torch.library.register_fake("wavenet::advance")
    def _(weights, geometry, queues, position, last_sample, samples, *settings):
        return queues.new_empty(*samples.shape, geometry[1])

    @torch.library.register_fake("wavenet::frame_bias")
    def _(weights, entries, limit, frames):
        context = sum((entries[4] - 1) * dilation for dilation in entries[5:])
        return frames.new_empty(frames.shape[0], frames.shape[2] - context, entries[3])

    @torch.library.register_fake("wavenet::uniforms")
    def _(seed, stream, substream, position, steps):
        return stream.new_empty(len(stream), steps, dtype=torch.float32)

    @torch.library.register_fake("wavenet::generate")
    def _(weights, geometry, queues, position, last_sample, uniforms, *settings):
        return position.new_empty(uniforms.shape)

    @torch.library.register_fake("wavenet::gated_layer")
    def _(x, weight, bias, output_weight, output_bias, gate_bias, gates, dilation, hop, start, linear, bf16):
        steps = x.shape[1] - (weight.shape[1] // x.shape[2] - 1) * dilation
        stored = torch.bfloat16 if bf16 else torch.float32
        halves = x.new_empty(x.shape[0], steps, weight.shape[0], dtype=stored)
        return halves, x.new_empty(x.shape[0], 0 if output_weight is None else steps, x.shape[2])

    @torch.library.register_fake("wavenet::gated_layer_backward")
    def _(x, weight, bias, output_weight, output_bias, gate_bias, halves, dgates, dy, *settings):
        output = x.new_empty(0, weight.shape[0] // 2) if output_weight is None else output_weight
        frames = 0 if gate_bias is None else gate_bias.shape[1]
        return (
            torch.empty_like(x),
            torch.empty_like(weight),
            torch.empty_like(bias),
            torch.empty_like(output),
            output.new_empty(output.shape[0]),
            x.new_empty(x.shape[0], frames, weight.shape[0]),
        )

    @torch.library.register_fake("wavenet::cpu_block")
    def _(like, shape, bf16):
        return like.new_empty(shape, dtype=torch.bfloat16 if bf16 else torch.float32)

    @torch.library.register_fake("wavenet::cross_entropy")
    def _(logits, targets, ignored):
        return tuple(logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(2))

    @torch.library.register_fake("wavenet::cross_entropy_backward")
    def _(logits, targets, nats, normalizers, dnats, ignored):
        return torch.empty_like(logits)
