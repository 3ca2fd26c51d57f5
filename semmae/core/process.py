"""Settings of a whole process. Entry points apply them; importing a module changes nothing."""

import contextlib
import ctypes
import os
import resource


def restrict_permissions() -> None:
    """Deny write access to users outside the group for all files that this process creates."""
    os.umask(os.umask(0o077) | 0o002)


def raise_open_files_limit() -> None:
    """Raise the limit of open files to the maximum that the system grants.

    A reader keeps every shard of a dataset open; ImageNet has 1,281 shards.
    """
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS does not grant infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of returning it to the system, which zeroes it again.

    Saves a fifth of a small CPU step. Does nothing where the allocator has no `mallopt`.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**26)
