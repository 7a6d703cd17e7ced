"""Saved generator states: streams in a file, with an identifier of their network."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from wavenet.engine.state import GeneratorState
from wavenet.errors import CheckpointError, ConfigError
from wavenet.generation.generator import Generator
from wavenet.models.serialization import read_notes
from wavenet.models.wavenet import WaveNet
from wavenet.utils.files import printable

VERSION = 1
_KEY = "wavenet_state"


def network_id(model: WaveNet) -> str:
    """Return an identifier of a network: a digest of its configuration and weights."""
    digest = hashlib.sha256(json.dumps(model.config.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def save_state(path: str | os.PathLike[str], generator: Generator, state: GeneratorState) -> None:
    """Write streams to a file, atomically, to continue them or to branch from them.

    Parameters
    ----------
    path : path
        A safetensors file; an existing one is replaced.
    generator : Generator
    state : GeneratorState

    Raises
    ------
    AudioError
        If the folder is missing or not writable, or the disk is full.
    """
    notes = {"version": VERSION, "network": network_id(generator.model)}
    state.save(path, {_KEY: json.dumps(notes)})


def load_state(path: str | os.PathLike[str], generator: Generator) -> GeneratorState:
    """Read streams written by `save_state`, or by `GeneratorState.save`, which does not name the network.

    Parameters
    ----------
    path : path
    generator : Generator
        Its network must be that of the streams.

    Returns
    -------
    GeneratorState, on the generator's device

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another version, or of another network.
    """
    shown, path = printable(path), Path(path)
    if not path.is_file():
        kind = "is not a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{shown}: {kind}; give a saved state")
    state = GeneratorState.load(path)
    network = network_id(generator.model)
    if _network_of(shown, read_notes(path).get(_KEY), network) != network:
        raise CheckpointError(
            f"{shown}: is the state of another network; give its checkpoint, or start new streams"
        )
    state = state.to(generator.backend.device)
    try:
        generator.check(state)
    except ConfigError as error:
        raise CheckpointError(f"{shown}: {error}") from None
    return state


def _network_of(shown: str, text: str | None, default: str) -> str:
    """Return the network named in a file's metadata, or the default if there is none."""
    if text is None:
        return default
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, dict) and values.get("version") not in (VERSION, None):
        raise CheckpointError(
            f"{shown}: is a state of version {values['version']!r}, this release reads {VERSION}; use the "
            "release that wrote it, or a newer one"
        )
    if (
        not isinstance(values, dict)
        or set(values) != {"version", "network"}
        or not isinstance(values["network"], str)
    ):
        raise CheckpointError(f"{shown}: is damaged (its metadata cannot be read); use another state")
    return values["network"]
