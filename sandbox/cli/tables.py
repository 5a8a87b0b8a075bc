"""Tables, sizes and ages as Docker prints them, and the same rows as JSON."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from sandbox.cli.outcome import one_line

_GAP: Final = 3
_ACTION: Final = re.compile(r"\{\{[^.}]*\.(\w+)[^}]*\}\}")  # and the field that it is about
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
# Seconds up to which Docker counts in this unit, and the unit's own.
_AGES: Final = ((60, 1, "second"), (3600, 60, "minute"), (172_800, 3600, "hour"), (1_209_600, 86_400, "day"), (5_184_000, 604_800, "week"))
_MONTH_S: Final = 86_400 * 30
_YEAR_S: Final = 86_400 * 365


def add_format(parser: argparse.ArgumentParser) -> None:
    """Give a command the option ``--format``."""
    text = "table; json: an object a line; or a template: '{{.Name}}', 'table {{.ID}}\\t{{.Name}}'"
    parser.add_argument("--format", metavar="table|json|TEMPLATE", type=_to_form, default="table", help=text)


def _to_form(text: str) -> str:
    if text not in ("table", "json") and "{{" not in text:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from 'table', 'json', or a template such as '{{{{.Name}}}}')")
    return text


def show(rows: Sequence[Mapping[str, str]], columns: Mapping[str, str], *, form: str) -> None:
    """Print *rows*: as a table with *columns* (the field of each, by its heading), each as a line of JSON with all of its fields, or by a template.

    Raises: UsageError: what is wrong with the template.
    """
    if form == "json":
        print("".join(f"{json.dumps(row)}\n" for row in rows), end="")
    elif form == "table":
        print(table(list(columns), [[row[name] for name in columns.values()] for row in rows]), end="")
    else:
        print(_filled_in(form, rows, columns), end="")


def _filled_in(form: str, rows: Sequence[Mapping[str, str]], columns: Mapping[str, str]) -> str:
    from sandbox.cli import templates

    text = form.removeprefix("table ").strip(" ").replace("\\t", "\t").replace("\\n", "\n")
    fill_in = templates.read(text)
    lines = [fill_in(row) for row in rows]
    if not form.startswith("table "):
        return "".join(f"{line}\n" for line in lines)
    headings = {field: heading for heading, field in columns.items()}
    head = _ACTION.sub(lambda match: headings.get(match[1], match[1].upper()), text)
    cells = [line.split("\t") for line in (head, *lines)]
    most = max(map(len, cells))
    first, *others = [[*line, *[""] * (most - len(line))] for line in cells]
    return table(first, others)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines with columns as wide as they need to be; what is no printable character is shown as its code."""
    lines = [list(headings), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) + _GAP for column in range(len(headings))]
    return "".join("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines)


def size(count: float, digits: int = 3) -> str:
    """Bytes for people: decimal units, so many digits."""
    for unit in _UNITS[:-1]:
        if count < 999.5:
            return f"{count:.{digits}g}{unit}"
        count /= 1000
    return f"{count:.{digits}g}{_UNITS[-1]}"


def share(part: int, whole: int) -> str:
    """A size, and what part of *whole* it is: ``"1.2GB (40%)"``."""
    return size(part, 4) + (f" ({part * 100 // whole}%)" if whole else "")


def moment(text: str) -> float | None:
    """Read a time as image documents write it (RFC 3339), in seconds since 1970; None for what is none."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except (ValueError, OverflowError, OSError):
        return None


def at(text: str) -> str:
    """A time of a document as Docker lists it; "N/A" for none."""
    seconds = moment(text)
    return "N/A" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")


def ago(text: str) -> str:
    """How long ago a time of a document was, in Docker's words; "N/A" for none."""
    seconds = moment(text)
    return "N/A" if seconds is None else f"{duration(time.time() - seconds)} ago"


def duration(seconds: float) -> str:
    """``"5 minutes"``, ``"About an hour"``, ``"3 weeks"``."""
    whole = max(int(seconds), 0)
    if whole < 1:
        return "Less than a second"
    if 60 <= whole < 120:
        return "About a minute"
    if 3600 <= whole < 5400:
        return "About an hour"
    for end, unit, name in (*_AGES, (2 * _YEAR_S, _MONTH_S, "month")):
        if whole < end:
            return f"{whole // unit} {name}{'' if whole // unit == 1 else 's'}"
    return f"{whole // _YEAR_S} years"


def agrees(question: str) -> bool:
    """Ask on the terminal; whatever is not yes is no."""
    print(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin is not None and sys.stdin.readline().strip().lower() in ("y", "yes")
