"""Rows of figures, to files and to pandas."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Sequence
from typing import IO, Any

from sandbox._types import StrPath
from sandbox.errors import UnsupportedError, UsageError

Row = Sequence[object]
Target = StrPath | IO[str]


@contextlib.contextmanager
def opened(target: Target) -> Generator[IO[str]]:
    """A text file to write to: *target* itself, which stays open, or a new one at that path.

    Raises: UsageError for what is neither. OSError.
    """
    if isinstance(target, (str, os.PathLike)):
        with open(target, "w", encoding="utf-8", newline="") as file:
            yield file
    elif hasattr(target, "write"):
        yield target
    else:
        raise UsageError(f"{target!r} is neither a path nor a text file")


def write_csv(target: Target, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a head line and a line for each row; what is not known (None) is empty."""
    import csv

    with opened(target) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def to_frame(columns: Sequence[str], rows: Sequence[Row]) -> Any:  # noqa: ANN401 - a pandas.DataFrame, which not everybody has
    """Make a pandas.DataFrame; what is not known is NaN.

    Raises: UnsupportedError: pandas is not installed.
    """
    import importlib

    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        raise UnsupportedError(
            "pandas is not installed", feature="pandas", remedy="pip install 'sandbox[pandas]', or take the rows, or to_csv()"
        ) from None
    return pandas.DataFrame.from_records(rows, columns=list(columns))
