"""Networks on disk: a folder with `config.json` and `model.safetensors`, and no pickles."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from wavenet.conditioning import registry as kinds
from wavenet.config import WaveNetConfig
from wavenet.errors import CheckpointError, ConfigError
from wavenet.models import registry
from wavenet.models.registry import NetworkConfig

FORMAT = "wavenet"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target` that replaces it if the block succeeds.

    An existing `target` is kept until the new folder is complete and on disk; if the block fails, the new
    folder is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target.parent)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    retired = beside.with_suffix(".old")
    try:
        yield beside
        for path in beside.iterdir():
            sync(path)
        beside.chmod(0o777 & ~_umask())
        sync(beside)
        if target.exists():
            target.rename(retired)
        beside.rename(target)
        sync(target.parent)
    except BaseException:
        if retired.exists() and not target.exists():
            retired.rename(target)
        shutil.rmtree(beside, ignore_errors=True)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def recover(folder: Path) -> None:
    """Restore folders that a process killed between the two renames of `new_directory` did not restore."""
    for retired in folder.glob(".*.old"):
        name = retired.name[1:].rpartition(".")[0].rpartition(".")[0]
        if name and not (folder / name).exists():
            with contextlib.suppress(OSError):
                retired.rename(folder / name)
        else:
            shutil.rmtree(retired, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, ending in a newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint; `CheckpointError` if it is missing or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: not a checkpoint: {path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged (not JSON: {error}); use another checkpoint") from None


def read_tensors(path: Path, advice: str = "use another checkpoint") -> dict[str, torch.Tensor]:
    """Read a safetensors file; `CheckpointError`, with advice, if it is missing or damaged.

    Weights that are all stored as float16, to halve the size, become float32.
    """
    try:
        with open(path, "rb") as file:
            _check_length(path, file.read(8), os.fstat(file.fileno()).st_size, advice)
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: not a checkpoint: {path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); {advice}") from None
    if all(tensor.dtype == torch.float16 for tensor in tensors.values()):
        return {name: tensor.float() for name, tensor in tensors.items()}
    return tensors


def _check_length(path: Path, head: bytes, size: int, advice: str) -> None:
    # The file begins with the length of its header; a damaged length must not be allocated.
    if len(head) < 8 or struct.unpack("<Q", head)[0] + 8 > size:
        raise CheckpointError(f"{path}: is damaged (cut short at {size} bytes); {advice}")


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file; `OSError` if that fails."""
    path.write_bytes(serialized(tensors))


def serialized(tensors: Mapping[str, torch.Tensor], notes: dict[str, str] | None = None) -> bytes:
    """Return tensors, with notes as metadata, in the safetensors format."""
    # safetensors refuses two names for the same memory, hence the copies.
    copies = {n: t.detach().cpu().clone().contiguous() for n, t in tensors.items()}
    return safetensors.torch.save(copies, metadata=notes)


def read_notes(path: Path) -> dict[str, str]:
    """Return the notes in a safetensors file that `read_tensors` has read."""
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write_network(
    directory: Path, config: NetworkConfig, tensors: Mapping[str, torch.Tensor], half: bool = False
) -> None:
    """Write configuration and weights, as float16 if `half`, into an existing directory.

    Raises `ConfigError` if a weight is too large for float16, or the configuration's class is not registered.
    """
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ConfigError(f"tensor {name!r} does not fit float16: store float32")
    values = {
        "architecture": registry.architecture_name(config),
        "format": FORMAT,
        "version": VERSION,
        "network": config.to_json(),
    }
    write_json(directory / CONFIG_FILE, values)
    save_tensors(directory / WEIGHTS_FILE, tensors)


def read_config(directory: Path) -> WaveNetConfig:
    """Read the configuration of a WaveNet from its directory.

    Raises `CheckpointError` as `read_network_config` does, and for a network of another architecture.
    """
    config = read_network_config(directory)
    if not isinstance(config, WaveNetConfig):
        name = registry.architecture_name(config)
        raise CheckpointError(
            f"{directory / CONFIG_FILE}: architecture {name!r} cannot be used here; "
            "use a 'wavenet' checkpoint"
        )
    try:
        kinds.check(config)
    except ConfigError as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from None
    return config


def read_network_config(directory: Path) -> NetworkConfig:
    """Read a network's configuration, of any registered architecture, from its directory.

    Raises `CheckpointError` if the directory is missing or contains no checkpoint, if format, version or
    architecture is unknown, or if the configuration is not valid.
    """
    if not directory.is_dir():
        kind = "is not a folder" if directory.exists() else "does not exist"
        raise CheckpointError(f"{directory}: {kind}; name a checkpoint folder, as written by wavenet-train")
    path = directory / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a wavenet checkpoint's configuration")
    if values.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: has format version {values.get('version')!r}, this program reads "
            f"{VERSION}; use the release that wrote it, or a newer one"
        )
    if "architecture" not in values:
        raise CheckpointError(f"{path}: key 'architecture' is missing; use another checkpoint")
    try:
        entry = registry.architecture(values["architecture"])
        return entry.load("config").from_json(values.get("network"))
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def check_tensors(
    path: Path, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Raise `CheckpointError` unless names, shapes and dtypes agree and every value is finite."""
    for name in expected:
        if name not in found:
            raise CheckpointError(f"{path}: tensor {name!r} is missing")
    for name, tensor in found.items():
        if name not in expected:
            raise CheckpointError(f"{path}: unknown tensor {name!r}")
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, the configuration asks "
                f"for {want.dtype} {tuple(want.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: tensor {name!r} contains NaN or infinity; use another checkpoint")
