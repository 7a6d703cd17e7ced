"""Compilation of networks by torch before training, with an explanation where it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from wavenet.config import TrainingConfig
from wavenet.errors import ConfigError

_COMPILER_MODULES = ("torch._dynamo", "torch._inductor", "triton")


def compile_network(model: nn.Module, training: TrainingConfig) -> None:
    """Compile the network's parallel form when it is first computed.

    Its parameters keep their names. Raises `ConfigError` for settings that exclude it.
    """
    if training.dropout:
        raise ConfigError("compile: not supported with dropout; leave out one of them")
    if training.checkpoint_layers:
        raise ConfigError("compile: not supported with checkpoint_layers; leave out one of them")
    # Every step has the same shapes.
    model.compile(dynamic=False)


@contextlib.contextmanager
def explain_compile_errors() -> Iterator[None]:
    """Turn a failure of the compiler into a `ConfigError`."""
    try:
        yield
    except Exception as error:
        modules = (each.__module__ for each in type(error).__mro__)
        if not any(module.startswith(_COMPILER_MODULES) for module in modules):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"compile: torch cannot compile the network here ({reason}); leave it out"
        ) from error
