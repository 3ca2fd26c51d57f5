"""Randomness by name: every random number is a pure function of a seed and the names of what it is for.

Nothing about a generator is ever saved: a resumed run folds the same names (epoch, step, key) and draws the same
numbers.
"""

import hashlib

import numpy as np
import torch


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
