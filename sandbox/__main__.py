"""The command ``sandbox``, and ``python -m sandbox``, which is the same: `sandbox.cli.main` in a process that is made for it."""

from __future__ import annotations

import gc
import sys

# Loading modules makes tens of thousands of objects that stay: to look among them for garbage after every 700, as Python does, is an eighth of the
# time of a short command. What runs for long is still looked after.
GARBAGE_AFTER = 20_000


def command() -> int:
    """Carry out the command line of this process; return the exit code."""
    gc.set_threshold(GARBAGE_AFTER)
    from sandbox.cli import main

    try:
        return main()
    finally:
        gc.freeze()  # at its end the interpreter would look through all of them once more


if __name__ == "__main__":
    sys.exit(command())
