"""How a stage begins, and how it ends: well, or in one sentence that says what to mend."""

import ctypes
import os
import sys
from collections.abc import Callable


def main(function: Callable[[], None]) -> None:
    """Run a stage's `function`; what a user can mend becomes one line on standard error and exit status 1, no
    traceback.

    With SEMMAE_DEBUG set the traceback is shown after all.
    """
    _keep_memory()
    try:
        function()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("SEMMAE_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped by SIGINT; run the same command again to start over", file=sys.stderr)
        raise SystemExit(130) from None


def _keep_memory() -> None:
    """Let glibc keep the memory that a step frees for the next: else it goes back to the system and is zeroed anew
    each time.

    A fifth of a small CPU step. Where the allocator is another one, nothing happens.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**26)
