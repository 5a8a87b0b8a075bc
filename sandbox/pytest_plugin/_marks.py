"""``@pytest.mark.sandbox(...)``: its options put together from function, class and module, and checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pytest

__all__ = ["FIXTURES", "NAME", "OF_INSIDE", "Options", "check", "container_options", "of_node"]

NAME: Final = "sandbox"
SCOPES: Final = ("function", "class", "module", "session")
# A function's own mark is for these; what has a wider scope is made from the marks of its class or module.
_NAMES: Final = ("container", "container_factory", "sandbox_pool")
FIXTURES: Final = frozenset(f"{scope}_{name}" if scope != "function" else name for scope in SCOPES for name in _NAMES)
_LIMITS: Final = ("timeout", "cpu_time")
OF_INSIDE: Final = ("inside", *_LIMITS)
_OWN: Final = (*OF_INSIDE, "pool_size")

Options = Mapping[str, Any]


def of_node(node: pytest.Item | pytest.Collector) -> dict[str, Any]:
    """The options of all marks that hold for *node*; the nearest one says the last word on each.

    Raises: UsageError: a mark with arguments that have no name.
    """
    merged: dict[str, Any] = {}
    for mark in _outermost_first(node):
        if mark.args:
            from sandbox import UsageError

            raise UsageError(f"{mark.args[0]!r}: options have names; write memory='64M', image='./root'")
        merged.update(mark.kwargs)
    return merged


def _outermost_first(node: pytest.Item | pytest.Collector) -> Iterator[pytest.Mark]:
    # Marks of one parameter set stand behind the function's own in `own_markers`, but are nearer.
    of_parameters: Sequence[pytest.Mark] = getattr(getattr(node, "callspec", None), "marks", ())
    marks = [mark for mark in node.iter_markers(NAME) if mark not in of_parameters]
    yield from reversed(marks)
    yield from (mark for mark in of_parameters if mark.name == NAME)


def container_options(options: Options) -> dict[str, Any]:
    """Those of *options* that are `Container`'s."""
    return {name: value for name, value in options.items() if name not in _OWN}


def check(options: Options, fixtures: Sequence[str], *, is_own: bool) -> None:
    """Check a test's options: their names, their values, and that they are for anything. Starts nothing.

    fixtures: the names of those that the test takes. is_own: the function itself is marked.
    Raises: UsageError, ImageError.
    """
    from sandbox import Container, UnsupportedError, UsageError

    known = [*_OWN, *list(inspect.signature(Container).parameters)]
    if unknown := sorted(options.keys() - set(known)):
        raise UsageError(f"{unknown[0]}: no such option; there are {', '.join(sorted(known))}")
    _check_own(options)
    taken = sorted(FIXTURES.intersection(fixtures))
    if options.get("inside"):
        _check_inside(options, taken)
    elif given := [name for name in _LIMITS if options.get(name) is not None]:
        raise UsageError(f"{given[0]}: is for a test that runs inside; give it to exec(), or add inside=True")
    elif is_own and not set(_NAMES).intersection(taken) and "request" not in fixtures:
        raise UsageError(f"this test takes none of {', '.join(_NAMES)}, so the mark has no effect (wider scopes heed those of class and module)")
    try:
        Container(**container_options(options))
    except UnsupportedError:
        return  # of the host, not of the call: the test will say so


def _check_own(options: Options) -> None:
    from sandbox import UsageError

    if not isinstance(inside := options.get("inside", False), bool):
        raise UsageError(f"inside: {inside!r} is neither True nor False")
    for name in _LIMITS:
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            raise UsageError(f"{name}: {value!r} is not a number of seconds above 0")
    size = options.get("pool_size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UsageError(f"pool_size: {size!r} is not a number of containers, 1 or more")


def _check_inside(options: Options, taken: Sequence[str]) -> None:
    from sandbox import UsageError

    if taken:
        raise UsageError(f"{taken[0]}: a test that runs inside a container cannot make others; leave inside or the fixture out")
    if options.get("image") is not None:
        raise UsageError("image: a test inside runs on this interpreter, which needs the libraries of the host; leave image out")
    if options.get("pool_size") is not None:
        raise UsageError("pool_size: a test inside has a container of its own, and no pool")
