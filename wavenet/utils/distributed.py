"""Several processes, on one machine or more, that work together; started by torchrun or a similar launcher.

A process reads its place from the environment (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT). Without these variables it is a single process, and torch is not imported here.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from wavenet.errors import ConfigError, WaveNetError

if TYPE_CHECKING:
    import torch

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others in a collective operation; the end of one is noticed at once."""

MAIN_TIMEOUT = datetime.timedelta(days=7)
"""How long the others wait for the main process while it prepares recordings, generates or saves."""

_LONGEST_SLEEP = 0.05

_Result = TypeVar("_Result")


def _number(name: str, default: int, low: int, high: int | None = None) -> int:
    """Return a whole number from the environment; raise `ConfigError` if it is not in its range."""
    text = os.environ.get(name, str(default))
    number = int(text) if text.isdecimal() else -1
    if number < low or (high is not None and number > high):
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name}={text} in the environment: must be a whole number, {wanted}; use torchrun")
    return number


def _require(name: str, size: int) -> None:
    if not os.environ.get(name):
        raise ConfigError(
            f"WORLD_SIZE={size} in the environment, but no {name}: start with torchrun, "
            "or unset WORLD_SIZE for a single process"
        )


@dataclass
class World:
    """The processes that work together, and the place of this one among them.

    Attributes
    ----------
    rank : int
        Number of this process among all; the main process, 0, writes all files.
    size : int
        Number of processes.
    local_rank, local_size : int
        The same among those on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _waiting: Any = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> World:
        """Return the world that the environment describes; a single process without WORLD_SIZE.

        Raises `ConfigError` if the variables are not consistent.
        """
        size = _number("WORLD_SIZE", 1, 1)
        if size == 1:
            return cls()
        _require("RANK", size)
        rank = _number("RANK", 0, 0, size - 1)
        local_size = _number("LOCAL_WORLD_SIZE", 1, 1, size)
        return cls(rank, size, _number("LOCAL_RANK", 0, 0, local_size - 1), local_size)

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes the files."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return this process's part of `count` items: consecutive ones, in nearly equal parts."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process: with several on a machine, each uses its own GPU.

        Raises `ConfigError` if there are too few GPUs, or if `device` has an index.
        """
        import torch

        if device.type != "cuda" or self.size == 1:
            return device
        if device.index is not None and self.local_size > 1:
            raise ConfigError(f"{device}: each process uses its own GPU; use cuda", argument="device")
        if device.index is None:
            count = torch.cuda.device_count()
            if self.local_size > count:
                raise ConfigError(
                    f"{self.local_size} processes, but {count} CUDA devices on this machine: start "
                    f"{count} processes, or use the device cpu"
                )
            device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    # -- connection -------------------------------------------------------------------------------------

    def join(self, device: torch.device) -> None:
        """Connect to the other processes; raise `WaveNetError` if they do not answer.

        Tensors on CPUs are sent with gloo, those on GPUs with nccl.
        """
        if self.size == 1:
            return
        _require("MASTER_ADDR", self.size)
        _require("MASTER_PORT", self.size)
        import torch.distributed as dist

        with self._contact():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
            self._waiting = dist.new_group(backend="gloo", timeout=MAIN_TIMEOUT)

    def leave(self) -> None:
        """Wait for all processes, because one that ends would interrupt the others; then disconnect."""
        if self.size == 1:
            return
        import torch.distributed as dist

        self._wait(0, COLLECTIVE_TIMEOUT)
        dist.destroy_process_group()

    @contextlib.contextmanager
    def _contact(self) -> Iterator[None]:
        """Turn a failed connection into a one-line error."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise WaveNetError(
                "the connection to the other processes is lost: one has ended (see its own message), or "
                f"did not answer for {COLLECTIVE_TIMEOUT.seconds // 60} minutes; start all of them again "
                f"({why[:200]})"
            ) from error

    def _reduced(self, values: Any, operation: str, dtype: str) -> list[Any]:
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=getattr(torch, dtype))
        with self._contact():
            dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return tensor.tolist()

    def _wait(self, value: int, timeout: datetime.timedelta = MAIN_TIMEOUT) -> int:
        """Return the maximum of a value over all processes, after all have called this."""
        import torch
        import torch.distributed as dist

        tensor, pause = torch.tensor([value]), 1e-4
        end = time.monotonic() + timeout.total_seconds()
        with self._contact():
            work: Any = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._waiting, async_op=True)
            # Polled, because a blocking wait would not handle signals.
            while not work.is_completed():
                if time.monotonic() > end:
                    raise RuntimeError("timeout")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_SLEEP)
            work.wait()
        return int(tensor)

    # -- collective operations -----------------------------------------------------------------------

    def any_rank(self, flag: bool) -> bool:
        """Return whether a flag is set in any process."""
        return flag if self.size == 1 else bool(self._reduced([int(flag)], "MAX", "int64")[0])

    def count(self, number: int) -> int:
        """Return the sum of a whole number over all processes."""
        return number if self.size == 1 else self._reduced([number], "SUM", "int64")[0]

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """Return the sums of some numbers over all processes, in float64."""
        return numbers if self.size == 1 else tuple(self._reduced(numbers, "SUM", "float64"))

    def run_on_main(self, work: Callable[[], object]) -> bool:
        """Call `work` in the main process while the others wait; return its truth value in all of them."""
        found = bool(work()) if self.is_main else False
        if self.size == 1:
            return found
        # The main process arrives last.
        return bool(self._wait(int(found), COLLECTIVE_TIMEOUT if self.is_main else MAIN_TIMEOUT))

    def run_main_first(self, work: Callable[[], _Result]) -> _Result:
        """Call `work` in the main process, then in the first of every other machine, then in all others.

        The later ones can use the files of the first, whether or not the machines share a disk.
        """
        if self.size == 1:
            return work()
        mine, found = (0 if self.is_main else 1 if self.local_rank == 0 else 2), []
        for turn in range(3):
            if turn == mine:
                found.append(work())
            self._wait(0)
        return found[0]

    def agree(self, values: Mapping[str, object]) -> None:
        """Raise `WaveNetError` naming the first value whose `repr` is not the same in all processes."""
        if self.size == 1:
            return
        import hashlib  # Imported here: it loads a cryptographic library.

        digests = [hashlib.sha256(repr(value).encode()).digest() for value in values.values()]
        numbers = [int.from_bytes(digest[:7], "big") for digest in digests]
        both = self._reduced([[number, -number] for number in numbers], "MAX", "int64")
        for name, (most, least) in zip(values, both, strict=True):
            if most != -least:
                raise WaveNetError(
                    f"the processes differ in {name}: all need the same command and see the same folders"
                )

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite float32 tensors with those of the main process."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        tensors = [tensor.detach() for tensor in tensors]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._contact():
            dist.broadcast(flat, 0)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def all_reduce_gradients(self, parameters: Iterable[torch.Tensor], loss: float) -> float:
        """Replace the gradients of float32 parameters by their sums over all processes; return a loss's sum.

        A process without a gradient adds zero.
        """
        if self.size == 1:
            return loss
        import torch
        import torch.distributed as dist

        parameters = list(parameters)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(part.reshape(-1) for part in parts), parts[0].new_tensor([loss])])
        with self._contact():
            dist.all_reduce(flat)
        *sums, total = flat.split([*(part.numel() for part in parts), 1])
        for parameter, part in zip(parameters, sums, strict=True):
            parameter.grad = part.view_as(parameter)
        return float(total)


ALONE = World()
"""A single process."""


def process_prefix() -> str:
    """Return the prefix of error messages with several processes, "process 1: "; empty for a single one."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")
    return f"process {os.environ.get('RANK', '?')}: " if several else ""
