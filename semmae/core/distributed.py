"""Ranks and devices: one process is the same code path as many.

Started by torchrun, a stage finds its rank in the environment; started alone it is rank 0 of 1 and every function
here is the identity.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class World:
    """This process among `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    def slice(self, rows: Tensor) -> Tensor:
        """This process's rows of something drawn for the global batch."""
        share = len(rows) // self.size
        return rows[self.rank * share : (self.rank + 1) * share]


@contextmanager
def world(device: Device) -> Iterator[World]:
    """Join the process group that torchrun announces, if any; leave it at the end."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        if size > 1:
            distributed.destroy_process_group()


def choose_device(device: Device) -> torch.device:
    """`auto` is this rank's GPU where there is one, else the CPU; asking for a GPU that is not there is a
    ValueError.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here; set device to cpu or auto in params.yaml")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision: bfloat16 needs no gradient scaling."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def parallel(model: nn.Module, world: World) -> nn.Module:
    """`model` with gradients averaged over the ranks."""
    return nn.parallel.DistributedDataParallel(model) if world.size > 1 else model


def mean(value: Tensor, world: World) -> Tensor:
    """The mean of a tensor over the ranks, on this rank's device, for NCCL knows no other; its gradient is that of
    this rank's share, for `parallel` averages them.
    """
    if world.size == 1:
        return value
    value = value.to(world.device)
    total = value.detach().clone()
    distributed.all_reduce(total)
    total /= world.size
    return total + (value - value.detach()) if value.requires_grad else total


def gather(rows: Tensor, world: World) -> Tensor:
    """The rows of all ranks, in the order of ranks, on this rank's device; without gradient."""
    if world.size == 1:
        return rows
    rows = rows.to(world.device)
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def maximum(values: Tensor, world: World) -> Tensor:
    """Each value's highest over the ranks, on the device, where nobody waits for it."""
    if world.size > 1:
        values = values.clone()
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values


def any_rank(flag: bool, world: World) -> bool:
    """Whether `flag` is set on any rank, agreed by all; waits for it."""
    return flag if world.size == 1 else bool(maximum(torch.full((), int(flag), device=world.device), world))


def barrier(world: World) -> None:
    """Wait for every rank."""
    if world.size > 1:
        distributed.barrier()
