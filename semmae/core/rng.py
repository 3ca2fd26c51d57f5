"""Randomness by name: every random number is a pure function of a seed and the names of what it is for.

Nothing about a generator is ever saved: a resumed run folds the same names (epoch, step, key) and draws the same
numbers.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

CPU = torch.device("cpu")


def fold(seed: int, *names: str | int) -> int:
    """A 63-bit seed for `names` under `seed`: the same everywhere for equal names, unrelated for different ones."""
    digest = hashlib.blake2b(digest_size=8)
    for name in (seed, *names):
        if not isinstance(name, str | int):
            raise TypeError(f"a seed folds strings and integers only, got {name!r}")
        digest.update(f"{type(name).__name__}:{name}\0".encode())
    return int.from_bytes(digest.digest(), "little") >> 1


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by `fold(seed, *names)`."""
    return torch.Generator().manual_seed(fold(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator seeded by `fold(seed, *names)`."""
    return np.random.default_rng(fold(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int, device: torch.device = CPU) -> Iterator[None]:
    """For libraries that draw from the global generators (timm's augmentations): in the block, those of `random`,
    numpy and torch (of the CPU and of `device`) start from `fold(seed, *names)`; then they are as they were before it.
    """
    folded, gpu = fold(seed, *names), device.type == "cuda"
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if gpu else []):
        random.seed(folded)
        np.random.seed(folded % 2**32)
        torch.default_generator.manual_seed(folded)  # torch.manual_seed would seed every GPU too, and be slow about it
        if gpu:
            torch.cuda.manual_seed(folded)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
