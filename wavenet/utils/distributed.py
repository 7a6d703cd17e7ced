"""Several processes, on one machine or more, that work as one; started by torchrun or in its manner.

What a process is told comes in its environment (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT). Without that it is alone, and nothing here costs it anything: torch is loaded where they meet.
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

LIMIT = datetime.timedelta(minutes=10)
"""How long a process waits for the others where all do the same; a process that ended is noticed at once."""

PATIENCE = datetime.timedelta(days=7)
"""The same where the others wait for one that prepares recordings, generates or saves."""

_LONGEST_NAP = 0.05

_Result = TypeVar("_Result")


def _number(name: str, default: int, low: int, high: int | None = None) -> int:
    """Return a whole number from the environment; `ConfigError` if it is none in its range."""
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
    """The processes that work together, and which of them this one is.

    Attributes
    ----------
    rank : int
        Number of this process among all; the first, 0, writes what there is to write.
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
        """Return the world that torchrun tells of; a process by itself where nothing is told.

        Raises `ConfigError` if what is told is no such world.
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
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of `count` things are this process's: consecutive ones, a fair share."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process: on a machine with several, each has a GPU of its own.

        Raises `ConfigError` if there are not enough of them, or one is named by its number.
        """
        import torch

        if device.type != "cuda" or self.size == 1:
            return device
        if device.index is not None and self.local_size > 1:
            raise ConfigError(f"--device {device}: each process takes a GPU of its own; say --device cuda")
        if device.index is None:
            count = torch.cuda.device_count()
            if self.local_size > count:
                raise ConfigError(
                    f"{self.local_size} processes and {count} CUDA devices on this machine: start with "
                    f"--nproc-per-node {count}, or add --device cpu"
                )
            device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    # -- meeting -------------------------------------------------------------------------------------

    def join(self, device: torch.device) -> None:
        """Meet the other processes; `WaveNetError` if they do not come.

        Small numbers go from CPU to CPU, gradients from where they are: over gloo, and nccl between GPUs.
        """
        if self.size == 1:
            return
        _require("MASTER_ADDR", self.size)
        _require("MASTER_PORT", self.size)
        import torch.distributed as dist

        with self._contact():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=LIMIT)
            self._waiting = dist.new_group(backend="gloo", timeout=PATIENCE)

    def leave(self) -> None:
        """Wait until all have come here, so that none ends another's work by its own end; then part."""
        if self.size == 1:
            return
        import torch.distributed as dist

        self._wait(0, LIMIT)
        dist.destroy_process_group()

    @contextlib.contextmanager
    def _contact(self) -> Iterator[None]:
        """Say in one line what it means if the others cannot be reached."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise WaveNetError(
                "the connection to the other processes is lost: one has ended (its own message says why), or "
                f"did not answer for {LIMIT.seconds // 60} minutes; start all of them again ({why[:200]})"
            ) from error

    def _reduced(self, values: Any, operation: str, dtype: str) -> list[Any]:
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=getattr(torch, dtype))
        with self._contact():
            dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return tensor.tolist()

    def _wait(self, value: int, patience: datetime.timedelta = PATIENCE) -> int:
        """Return the largest value that a process brings, once all have brought theirs."""
        import torch
        import torch.distributed as dist

        tensor, nap = torch.tensor([value]), 1e-4
        end = time.monotonic() + patience.total_seconds()
        with self._contact():
            work: Any = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._waiting, async_op=True)
            # Asked rather than waited for, so that signals are heeded.
            while not work.is_completed():
                if time.monotonic() > end:
                    raise RuntimeError("waited in vain")
                time.sleep(nap)
                nap = min(2 * nap, _LONGEST_NAP)
            work.wait()
        return int(tensor)

    # -- what all take part in -----------------------------------------------------------------------

    def any_rank(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return flag if self.size == 1 else bool(self._reduced([int(flag)], "MAX", "int64")[0])

    def count(self, number: int) -> int:
        """Return the sum of a whole number over all processes."""
        return number if self.size == 1 else self._reduced([number], "SUM", "int64")[0]

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """Return the sums of some numbers over all processes, in float64."""
        return numbers if self.size == 1 else tuple(self._reduced(numbers, "SUM", "float64"))

    def run_on_main(self, work: Callable[[], object]) -> bool:
        """Let the first process work while the others wait; return whether what it returned is true."""
        found = bool(work()) if self.is_main else False
        if self.size == 1:
            return found
        # The one that worked comes last.
        return bool(self._wait(int(found), LIMIT if self.is_main else PATIENCE))

    def run_main_first(self, work: Callable[[], _Result]) -> _Result:
        """Work in the first process, then in the first of every other machine, then in all others.

        So what one leaves on a disk serves the others, whether the machines share it or not.
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
        """Raise `WaveNetError` naming the first value that is not the same in all processes, as it prints."""
        if self.size == 1:
            return
        import hashlib  # A cryptographic library, which commands answer --help without.

        digests = [hashlib.sha256(repr(value).encode()).digest() for value in values.values()]
        numbers = [int.from_bytes(digest[:7], "big") for digest in digests]
        both = self._reduced([[number, -number] for number in numbers], "MAX", "int64")
        for name, (most, least) in zip(values, both, strict=True):
            if most != -least:
                raise WaveNetError(
                    f"the processes differ in {name}: all need the same command and see the same folders"
                )

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite float32 tensors with those of the first process."""
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

        A process that has no gradient adds zero.
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
"""A process by itself."""


def process_prefix() -> str:
    """Return what an error begins with where several processes may tell of one: "process 1: "."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")
    return f"process {os.environ.get('RANK', '?')}: " if several else ""
