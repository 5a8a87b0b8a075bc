"""``sandbox events``: what happens to containers that outlive their command, in Docker's words."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sandbox import UsageError
from sandbox.cli import kept as by_name
from sandbox.cli import tables
from sandbox.cli.health import to_duration
from sandbox.cli.outcome import one_line, outcome
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.keep import Event, events

_FILTERS: Final = ("container", "event", "image", "label", "type")
_SECONDS: Final = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)


def main(arguments: Sequence[str]) -> int:
    """Print events until --until, or without end."""
    parser = Parser(
        prog="sandbox events",
        description="Print what happens to containers that outlive their command; with --since, also what has happened.",
        allow_abbrev=False,
    )
    parser.add_argument("--since", metavar="TIME", help="from then on: 2026-01-31T10:00:00, seconds since 1970, or 10m: ago")
    parser.add_argument("--until", metavar="TIME", help="and no longer than until then")
    parser.add_argument("--filter", "-f", metavar="WHAT=VALUE", action="append", default=[], help=f"one of {', '.join(_FILTERS)}")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: an object a line")
    return outcome("sandbox events", lambda: _show(parser.parse_args(list(arguments))))


def _show(parsed: argparse.Namespace) -> None:
    fits = to_filters(parsed.filter)
    since, until = to_moment("--since", parsed.since), to_moment("--until", parsed.until)
    for event in events(since, until):
        if fits(event):
            print(json.dumps(document(event)) if parsed.format == "json" else one_line(line(event)), flush=True)


def to_moment(option: str, text: str | None) -> float | None:
    """A time as Docker takes it, in seconds since 1970. Raises: UsageError."""
    if text is None:
        return None
    if _SECONDS.fullmatch(text):
        return float(text)
    ago = to_duration(text)
    if ago is not None:
        return time.time() - ago
    found = tables.moment(text)  # without a zone it is ours, as Docker has it
    if found is None or found < 0:
        raise UsageError(f"{option}: {text!r} is no time; write it as 2026-01-31T10:00:00Z, 1769853600 or 10m")
    return found


def to_filters(texts: Sequence[str]) -> Callable[[Event], bool]:
    """Docker's rule: of a kind, one value is enough; labels must all be there. Raises: WrongUseError."""
    wanted: dict[str, list[str]] = {}
    for text in texts:
        name, value = by_name.pair("--filter", text, needs_value=True)
        if name not in _FILTERS:
            raise WrongUseError(f"--filter: {name!r} is unknown; there are {', '.join(_FILTERS)}")
        wanted.setdefault(name, []).append(value)

    def fits(event: Event) -> bool:
        words = event.attributes
        tests: dict[str, Callable[[str], bool]] = {
            "container": lambda value: value == words.get("name") or (value != "" and event.id.startswith(value)),
            "event": lambda value: value in (event.action, event.action.partition(":")[0]),
            "image": lambda value: value == words.get("image"),
            "label": lambda value: _has_label(event, value),
            "type": lambda value: value == "container",
        }
        return all((all if name == "label" else any)(map(tests[name], values)) for name, values in wanted.items())

    return fits


def _has_label(event: Event, wanted: str) -> bool:
    name, equals, text = wanted.partition("=")
    return name in event.attributes and (not equals or event.attributes[name] == text)


def document(event: Event) -> dict[str, Any]:
    """What ``docker events --format json`` says."""
    return {
        "status": event.action,
        "id": event.id,
        "from": event.attributes.get("image", ""),
        "Type": "container",
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": dict(event.attributes)},
        "scope": "local",
        "time": event.time_ns // 10**9,
        "timeNano": event.time_ns,
    }


def line(event: Event) -> str:
    """As Docker prints it: ``2026-01-31T10:00:00.000000000Z container start 0123... (image=app, name=web)``."""
    words = ", ".join(f"{name}={text}" for name, text in sorted(event.attributes.items()))
    moment = datetime.fromtimestamp(min(event.time_ns // 10**9, 253_402_300_799), UTC)  # the end of the year 9999
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{event.time_ns % 10**9:09}Z container {event.action} {event.id} ({words})"
