"""How a stage ends: well, or in one sentence that says what to mend."""

import os
import sys
from collections.abc import Callable


def main(function: Callable[[], None]) -> None:
    """Run a stage's `function`; what a user can mend becomes one line on standard error and exit status 1, no traceback.

    With SEMMAE_DEBUG set the traceback is shown after all.
    """
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
