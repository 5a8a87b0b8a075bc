"""What the subcommands about things that are kept by name (volumes, networks) have in common; they differ in the store that they ask."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from sandbox import SandboxError, UsageError
from sandbox.cli.outcome import FAILED
from sandbox.cli.parser import WrongUseError

T_co = TypeVar("T_co", covariant=True)
Complain = Callable[[str], None]


class Store(Protocol[T_co]):
    """Where things are kept."""

    def names(self) -> list[str]:
        """All of them."""
        ...

    def get(self, name: str, /) -> T_co:
        """What is known of one. Raises: UsageError: it is not there, or damaged."""
        ...

    def remove(self, name: str, /, *, force: bool) -> None:
        """Remove one that nobody uses."""
        ...


def pair(option: str, text: str, *, needs_value: bool) -> tuple[str, str]:
    """Read ``NAME=VALUE``, or without *needs_value* also ``NAME``. Raises: WrongUseError."""
    name, equals, value = text.partition("=")
    if not name or (needs_value and not equals):
        raise WrongUseError(f"{option}: {text!r} is not NAME=VALUE")
    return name, value


def listed(store: Store[T_co], complain: Complain) -> Iterator[T_co]:
    """All that is there; one that is damaged is told, and does not hide the others."""
    for name in store.names():
        try:
            yield store.get(name)
        except UsageError as error:
            complain(str(error))


def is_dangling(is_used: Callable[[], object]) -> bool:
    """Whether nobody uses one that was there a moment ago."""
    try:
        return not is_used()
    except UsageError:  # it has just gone
        return True


def add_inspect_format(parser: argparse.ArgumentParser) -> None:
    """Give a command that inspects the option ``--format``."""
    parser.add_argument("--format", "-f", metavar="json|TEMPLATE", default="", help="a template for each, such as '{{.Name}}'; json: all in one line")


def inspect(names: Iterable[str], look: Callable[[str], dict[str, Any]], complain: Complain, *, form: str = "") -> int:
    """Print what *look* says of each, as JSON, or a line for each by the template *form*; the exit code."""
    from sandbox.cli import templates

    fill_in = templates.read(form) if form not in ("", "json") else None
    found: list[dict[str, Any]] = []
    code = _each(names, lambda name: found.append(look(name)), complain)
    if fill_in is None:
        print(json.dumps(found) if form else json.dumps(found, indent=4))
        return code
    for one in found:
        print(fill_in(one))
    return code


def remove(names: Iterable[str], store: Store[object], complain: Complain, *, force: bool) -> int:
    """Remove each, and print its name; the exit code."""

    def work(name: str) -> None:
        store.remove(name, force=force)
        print(name)

    return _each(names, work, complain)


def _each(names: Iterable[str], work: Callable[[str], None], complain: Complain) -> int:
    """Do *work* for each name: one that fails is told, and keeps none of the others."""
    code = 0
    for name in names:
        try:
            work(name)
        except (SandboxError, OSError) as error:
            complain(str(error))
            code = FAILED
    return code
