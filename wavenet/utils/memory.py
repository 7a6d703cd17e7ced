"""Available memory: of the machine, of this process's control groups, and of this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any

LARGE = 1 << 20
"""Blocks from this many bytes are returned to the system when they are freed (`return_freed_blocks`)."""

THREAD_ADDRESSES = 128 << 20
"""Bytes of address space, not of memory, that glibc reserves for the first block of another thread."""

_M_MMAP_THRESHOLD = -3


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory has run out, on the CPU or on a GPU."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    phrases = ("out of memory", "not enough memory", "allocate memory", "bad_alloc", "failed to allocate")
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in phrases)


def available_bytes(device: Any = None, swap: bool = False, threads: bool = False) -> int | None:
    """Return how much more memory this process may use, or None if the system does not report it.

    Parameters
    ----------
    device : torch.device, optional
        By default the CPU.
    swap : bool
        Whether to count memory that is available after moving other programs' memory to disk.
    threads : bool
        Whether other threads have yet to start; their address space is then subtracted.
    """
    if device is not None and device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    rooms = [*_machine_room(swap), *_group_rooms(), *_process_room(THREAD_ADDRESSES if threads else 0)]
    return max(0, min(rooms)) if rooms else None


def return_freed_blocks() -> None:
    """Make the C library return freed blocks to the system.

    glibc keeps freed blocks of up to 32 MB, and later blocks may not fit into them: a step then takes up to
    2.7 times the memory of its tensors. Returning them takes a little time. Only for glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)


def _machine_room(swap: bool) -> list[int]:
    known = {}
    for line in _lines(Path("/proc/meminfo")):
        name, _, rest = line.partition(":")
        if rest.split():
            known[name] = int(rest.split()[0]) * 1024
    if "MemAvailable" in known:
        return [known["MemAvailable"] + (known.get("SwapFree", 0) if swap else 0)]
    try:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return []


def _group_rooms(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return the unused parts of the memory limits of this process's control groups (version 1 and 2)."""
    rooms = []
    for line in _lines(proc):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be outside of what is visible; only visible groups are read.
        folder = top / path.strip("/")
        while True:
            limit, used = (next(iter(_lines(folder / name)), "") for name in names[:2])
            if limit.isdigit() and used.isdigit():
                stat = dict(entry.split(maxsplit=1) for entry in _lines(folder / "memory.stat"))
                rooms.append(int(limit) - int(used) + int(stat.get(names[2], 0)))
            if folder == top:
                break
            folder = folder.parent
    return rooms


def _process_room(reserved: int) -> list[int]:
    """Return what remains of a limit on the address space (ulimit -v), minus so many bytes."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return []
        pages = next(iter(_lines(Path("/proc/self/statm"))), "0").split()[0]
        return [limit - int(pages) * os.sysconf("SC_PAGE_SIZE") - reserved]
    except (ImportError, AttributeError, ValueError, OSError):
        return []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
