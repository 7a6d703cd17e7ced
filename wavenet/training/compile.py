"""Networks that torch compiles before they are trained, and what is said where it cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from wavenet.config import TrainingConfig
from wavenet.errors import ConfigError
from wavenet.models.wavenet import WaveNet

_MAKERS = ("torch._dynamo", "torch._inductor", "triton")


def compile_network(model: WaveNet, training: TrainingConfig) -> None:
    """Have the network's parallel form compiled when it is first computed.

    Its parameters keep their names and places. Raises `ConfigError` for what does not go together with it.
    """
    if training.dropout:
        raise ConfigError(
            "--compile: dropout with a key of its own is not compiled; leave out --compile or --dropout"
        )
    if training.checkpoint_layers:
        raise ConfigError(
            "--compile: decides itself what is kept; leave out --compile or --checkpoint-layers"
        )
    # Every step has the same shapes.
    model.compile(dynamic=False)


@contextlib.contextmanager
def compiling_explained() -> Iterator[None]:
    """Turn a failure to compile into a `ConfigError` that says what to do."""
    try:
        yield
    except Exception as error:
        makers = (each.__module__ for each in type(error).__mro__)
        if not any(maker.startswith(_MAKERS) for maker in makers):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"--compile: torch cannot compile the network here ({reason}); leave --compile out"
        ) from error
