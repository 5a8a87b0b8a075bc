"""What stands behind the fixtures: containers that are closed at the end of a scope, and known to the reports meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, Self

import pytest

import sandbox
from sandbox.pytest_plugin import _marks
from sandbox.pytest_plugin._services import ServiceContainer

__all__ = ["WATCHED", "ContainerFactory", "open_pool", "options_for"]

WATCHED: Final = pytest.StashKey[list[ServiceContainer]]()  # those that are open, of all scopes


def options_for(request: pytest.FixtureRequest, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options for a fixture of *request*'s scope: the marks of its function, class or module over `sandbox_options`."""
    if not isinstance(defaults, Mapping):
        raise sandbox.UsageError(f"sandbox_options: {defaults!r} is not a mapping of options to their values")
    options = {**defaults, **_marks.of_node(request.node)}
    for name in _marks.OF_INSIDE:  # of the tests, some of which may run inside
        options.pop(name, None)
    _marks.check(options, request.fixturenames, is_own=False)
    return options


class ContainerFactory:
    """Makes containers; all of them are closed at the end of the fixture's scope. Call it, with the arguments of `Container`.

    What is not given comes from the marks, and then from `sandbox_options`.
    """

    def __init__(self, request: pytest.FixtureRequest, defaults: Mapping[str, Any]) -> None:
        self._options = _marks.container_options(options_for(request, defaults))
        self._watched = request.config.stash.setdefault(WATCHED, [])
        self._open = contextlib.ExitStack()

    def __call__(self, image: str | os.PathLike[str] | None = None, **options: Any) -> ServiceContainer:  # noqa: ANN401 - Container's own
        """Make a container and start it."""
        given = options if image is None else {**options, "image": image}
        container = ServiceContainer(**{**self._options, **given})
        self._open.callback(self._close, container)
        self._watched.append(container)
        container.create()
        return container

    def _close(self, container: ServiceContainer) -> None:
        if container in self._watched:
            self._watched.remove(container)
        container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()


@contextlib.contextmanager
def open_pool(request: pytest.FixtureRequest, defaults: Mapping[str, Any]) -> Generator[Any]:
    """A `sandbox.Pool` of containers as the marks say, *pool_size* of them. Raises: UnsupportedError: there is none in this release."""
    options = options_for(request, defaults)
    make_pool = getattr(sandbox, "Pool", None)
    if make_pool is None:
        raise sandbox.UnsupportedError("sandbox_pool: this release has no pool", feature="sandbox.Pool", remedy="use a later one")
    size = options.get("pool_size")
    pool = make_pool(**_marks.container_options(options), **({} if size is None else {"size": size}))
    try:
        yield pool
    finally:
        pool.close()


def watched(config: pytest.Config) -> Sequence[ServiceContainer]:
    """The containers of fixtures that are open now."""
    return config.stash.get(WATCHED, None) or ()


def sections(config: pytest.Config) -> list[tuple[str, str]]:
    """What the containers that are open have to tell of the current test, each with a heading."""
    stories = [(container, container.story()) for container in watched(config)]
    return [(f"container {number}: {_describe(container)}", story) for number, (container, story) in enumerate(stories, 1) if story]


def begin(config: pytest.Config) -> None:
    """A test begins."""
    for container in watched(config):
        container.begin()


def _describe(container: ServiceContainer) -> str:
    root = container.spec.filesystem.root
    return "view of the host" if isinstance(root, sandbox.fs.HostView) else root.path
