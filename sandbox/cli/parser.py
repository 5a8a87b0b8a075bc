"""The parser that all subcommands have in common."""

from __future__ import annotations

import argparse
import os
from typing import Any, NoReturn

from sandbox.errors import UsageError


class WrongUseError(UsageError):
    """The shape of the command line is wrong: an option that there is not, a value or the program missing."""


class Help(argparse.HelpFormatter):
    """Help as wide as the terminal. argparse makes one for each option, to check it, and would load shutil with all it knows of archives for that."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


class PlainHelp(Help, argparse.RawDescriptionHelpFormatter):
    """The same; what is said before and after the options keeps its lines."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions, so that they all look alike."""

    def __init__(self, *, formatter_class: type[Help] = Help, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(formatter_class=formatter_class, **options)

    def error(self, message: str) -> NoReturn:
        """Raise WrongUseError."""
        raise WrongUseError(message)


def _columns() -> int:
    """How wide the terminal is: as shutil.get_terminal_size tells it."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:  # it is none
        return 80
