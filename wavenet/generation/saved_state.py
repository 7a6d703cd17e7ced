"""Takes that are left off and gone on with: a state in a file, with the network that it belongs to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from wavenet.engine.state import GeneratorState
from wavenet.errors import CheckpointError, ConfigError
from wavenet.generation.generator import Generator
from wavenet.models.serialization import read_notes
from wavenet.models.wavenet import WaveNet
from wavenet.utils.files import printable

VERSION = 1
_KEY = "wavenet_state"


@dataclass(frozen=True)
class Origin:
    """What is written beside a state.

    Attributes
    ----------
    network : str
        Name of the network, from its configuration and weights.
    told_from : int
        Position of the streams at which what they are told began.
    """

    network: str
    told_from: int = 0


def network_name(model: WaveNet) -> str:
    """Return a name that no other network has: a digest of configuration and weights."""
    digest = hashlib.sha256(json.dumps(model.config.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def save_state(
    path: str | os.PathLike[str], generator: Generator, state: GeneratorState, told_from: int = 0
) -> None:
    """Write streams to a file that appears whole or not at all, to go on with or to branch from.

    Parameters
    ----------
    path : path
        A safetensors file; what stands there is replaced.
    generator : Generator
    state : GeneratorState
    told_from : int
        Position at which what the streams are told begins; see `Generator.steering`.

    Raises
    ------
    AudioError
        If the folder is missing or not writable, or the disk is full.
    """
    notes = Origin(network_name(generator.model), told_from)
    state.save(path, {_KEY: json.dumps({"version": VERSION, **dataclasses.asdict(notes)})})


def load_state(path: str | os.PathLike[str], generator: Generator) -> tuple[GeneratorState, Origin]:
    """Read streams written by `save_state`, or `GeneratorState.save`, of which the shape alone is checked.

    Parameters
    ----------
    path : path
    generator : Generator
        Whose network the streams must be of.

    Returns
    -------
    state, on the generator's device, and notes

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another version, or of another network.
    """
    shown, path = printable(path), Path(path)
    if not path.is_file():
        kind = "is not a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{shown}: {kind}; name one that --save-state has written")
    state = GeneratorState.load(path)
    network = network_name(generator.model)
    notes = _notes(shown, read_notes(path).get(_KEY), network)
    if notes.network != network:
        raise CheckpointError(f"{shown}: is the state of another network; name its checkpoint, or start anew")
    state = state.to(generator.backend.device)
    try:
        generator.check(state)
    except ConfigError as error:
        raise CheckpointError(f"{shown}: {error}") from None
    return state, notes


def _notes(shown: str, text: str | None, network: str) -> Origin:
    if text is None:
        return Origin(network)
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, dict) and values.get("version") not in (VERSION, None):
        raise CheckpointError(
            f"{shown}: is a state of version {values['version']!r}, this program reads {VERSION}; use the "
            "release that wrote it, or a newer one"
        )
    if not isinstance(values, dict) or set(values) != {"version", "network", "told_from"}:
        raise CheckpointError(f"{shown}: is damaged (its notes cannot be read); use another state")
    told_from = values["told_from"]
    if not isinstance(values["network"], str) or type(told_from) is not int or not 0 <= told_from < 2**60:
        raise CheckpointError(f"{shown}: is damaged (its notes cannot be read); use another state")
    return Origin(values["network"], told_from)
