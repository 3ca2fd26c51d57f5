"""Named random streams: every random number is a pure function of a seed and of names that describe its use.

No generator state is saved. A resumed run derives its seeds from the same names, for example epoch, step and sample
key, and draws the same numbers.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

CPU = torch.device("cpu")


def fold(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed, a hash of `seed` and `names`, equal on all machines. Other names give unrelated seeds."""
    digest = hashlib.blake2b(digest_size=8)
    for name in (seed, *names):
        if not isinstance(name, str | int):
            raise TypeError(f"a random stream is named {name!r}; expected a string or an integer")
        digest.update(f"{type(name).__name__}:{name}\0".encode())
    return int.from_bytes(digest.digest(), "little") >> 1


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator of torch, seeded by `fold(seed, *names)`."""
    return torch.Generator().manual_seed(fold(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a generator of numpy, seeded by `fold(seed, *names)`."""
    return np.random.default_rng(fold(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int, device: torch.device = CPU) -> Iterator[None]:
    """Seed the global generators within the block, and restore their state afterwards.

    The block can then call libraries that draw from the global generators, such as the augmentations of timm. The
    generators are those of `random`, numpy and torch, on the CPU and on `device`.
    """
    folded, gpu = fold(seed, *names), device.type == "cuda"
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if gpu else []):
        random.seed(folded)
        np.random.seed(folded % 2**32)
        torch.default_generator.manual_seed(folded)  # torch.manual_seed would also seed every GPU, slowly
        if gpu:
            torch.cuda.manual_seed(folded)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
