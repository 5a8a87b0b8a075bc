"""What becomes of a subcommand: its exit code, and a line for what went wrong, by which no stranger steers the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from sandbox import SandboxError
from sandbox.cli.parser import WrongUseError
from sandbox.cli.words import said

FAILED: Final = 1
WRONG_USE: Final = 2


def one_line(text: str) -> str:
    """No terminal shall obey what a file's name or a program's name says."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable(text: str) -> str:
    """The same for what has lines and columns of its own."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def complain(command: str, text: str, *, show: Callable[[str], str] = one_line) -> None:
    """Say on standard error what is wrong, in the command line's words."""
    print(f"{command}: {show(said(command, text))}", file=sys.stderr)


def outcome(command: str, carry_out: Callable[[], int | None], *, show: Callable[[str], str] = one_line) -> int:
    """The exit code of *command*: what *carry_out* returns (None: 0), 1 it failed, 2 wrong use. That nobody reads on is the dispatcher's business."""
    try:
        return carry_out() or 0
    except WrongUseError as error:
        complain(command, f"{error} (see {command} --help)", show=show)
        return WRONG_USE
    except BrokenPipeError:
        raise
    except SandboxError as error:
        complain(command, str(error), show=show)
        return FAILED
    except OSError as error:
        complain(command, _words_of(error), show=show)
        return FAILED
    except SystemExit:  # --help
        return 0


def _words_of(error: OSError) -> str:
    """What the kernel refused, and on which file; Python's own words begin with a number."""
    if error.strerror is None:
        return str(error)
    name = error.filename if isinstance(error.filename, (str, bytes)) else ""
    return f"{os.fsdecode(name)}: {error.strerror}" if name else error.strerror
