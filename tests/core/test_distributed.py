"""Collective functions work on the device of the rank."""

import pytest
import torch

from semmae.core import distributed
from semmae.core.distributed import World


def test_a_mean_over_ranks_is_computed_on_their_device(monkeypatch: pytest.MonkeyPatch):
    reduced = []  # NCCL needs GPU tensors; a recorded value may be on the CPU
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: reduced.append(value.device.type))
    distributed.mean(torch.ones(()), World(rank=0, size=2, device=torch.device("meta")))
    assert reduced == ["meta"]
