"""The pytest plugin: containers as fixtures, services that are waited for, and tests that run inside a container.

pytest finds it by its entry point. Whatever it takes is imported when a test first asks for it: a run that does not use it
pays for this module, and for a look at each test's marks. The marks are checked while tests are collected.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.pytest_plugin import _marks

if TYPE_CHECKING:
    from sandbox.pytest_plugin._fixtures import ContainerFactory
    from sandbox.pytest_plugin._inside import InsideTest
    from sandbox.pytest_plugin._services import Service, ServiceContainer, ServiceError

__all__ = ["ContainerFactory", "Service", "ServiceContainer", "ServiceError"]

IS_INSIDE = pytest.StashKey[bool]()  # of the config of a pytest that runs one test inside a container
_RUN: pytest.StashKey[InsideTest] = pytest.StashKey()


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name == "ContainerFactory":
        from sandbox.pytest_plugin import _fixtures

        return _fixtures.ContainerFactory
    if name in __all__:
        from sandbox.pytest_plugin import _services

        return getattr(_services, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---- Hooks ----


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "sandbox(**options): options of the containers that the fixtures of the sandbox plugin make, such as memory='64M', image='./root'. "
        "With inside=True, the test itself runs in such a container; then timeout= and cpu_time= (seconds) are limits too. "
        "pool_size: containers of sandbox_pool.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Check a test's marks while it is collected: a wrong one is an error of its module, which says where it stands."""
    definition = metafunc.definition
    if definition.get_closest_marker(_marks.NAME) is None or metafunc.config.stash.get(IS_INSIDE, False):
        return
    from sandbox import ImageError, UsageError

    complaint = ""
    try:
        # ``inside=False`` is an exception from what a class or module says, and needs no container.
        is_own = any(mark.name == _marks.NAME and mark.kwargs.keys() - {"inside"} for mark in definition.own_markers)
        _marks.check(_marks.of_node(definition), metafunc.fixturenames, is_own=is_own)
    except (UsageError, ImageError) as error:
        complaint = str(error)
    if complaint:  # outside of `except`: its traceback would be shown as well
        path, line, name = definition.reportinfo()
        pytest.fail(f"{path}:{(line or 0) + 1}: {name}: @pytest.mark.sandbox: {complaint}", pytrace=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run a test that is to run inside, all of it; what became of it is told in the three phases.

    Marks that skip were looked at before (their hooks go first); the item's own fixtures would be set up after.
    """
    if item.config.stash.get(IS_INSIDE, False):
        return
    if "sandbox.pytest_plugin._fixtures" in _loaded():
        from sandbox.pytest_plugin import _fixtures

        _fixtures.begin(item.config)
    if item.get_closest_marker(_marks.NAME) is not None and _marks.of_node(item).get("inside"):
        from sandbox.pytest_plugin import _inside

        run = item.stash[_RUN] = _inside.InsideTest(item)
        run.run()
        run.settle("setup")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    yield
    if (run := item.stash.get(_RUN, None)) is not None:
        run.settle("teardown")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say in the report what became of a test inside; add what the containers of a failed one wrote."""
    report = yield
    if (run := item.stash.get(_RUN, None)) is not None:
        run.amend(report, call.excinfo)
    if report.failed and "sandbox.pytest_plugin._fixtures" in _loaded():
        from sandbox.pytest_plugin import _fixtures

        report.sections.extend(_fixtures.sections(item.config))
    return report


def _loaded() -> Mapping[str, object]:
    """The modules that are there: most runs never make a container."""
    import sys

    return sys.modules


# ---- Fixtures ----


@pytest.fixture(scope="session")
def sandbox_options() -> Mapping[str, Any]:
    """Options of all containers that the fixtures make, unless a mark says otherwise. Override it in a conftest.py."""
    return {}


def _container_factory(request: pytest.FixtureRequest, sandbox_options: Mapping[str, Any]) -> Iterator[ContainerFactory]:
    """Call it to make and start containers: container_factory(memory="64M"). They are closed at the end of the fixture's scope."""
    from sandbox.pytest_plugin import _fixtures

    with _fixtures.ContainerFactory(request, sandbox_options) as factory:
        yield factory


def _container(request: pytest.FixtureRequest, sandbox_options: Mapping[str, Any]) -> Iterator[ServiceContainer]:
    """A started container, as the sandbox marks say; it is closed at the end of the fixture's scope."""
    from sandbox.pytest_plugin import _fixtures

    with _fixtures.ContainerFactory(request, sandbox_options) as factory:
        yield factory()


def _sandbox_pool(request: pytest.FixtureRequest, sandbox_options: Mapping[str, Any]) -> Iterator[Any]:
    """A pool of warm containers, as the sandbox marks say (pool_size=); it is closed at the end of the fixture's scope."""
    from sandbox.pytest_plugin import _fixtures

    with _fixtures.open_pool(request, sandbox_options) as pool:
        yield pool


# As pytest-mock names its `mocker`: the scope first, none for a function's.
container = pytest.fixture(scope="function")(_container)
class_container = pytest.fixture(scope="class")(_container)
module_container = pytest.fixture(scope="module")(_container)
session_container = pytest.fixture(scope="session")(_container)

container_factory = pytest.fixture(scope="function")(_container_factory)
class_container_factory = pytest.fixture(scope="class")(_container_factory)
module_container_factory = pytest.fixture(scope="module")(_container_factory)
session_container_factory = pytest.fixture(scope="session")(_container_factory)

sandbox_pool = pytest.fixture(scope="function")(_sandbox_pool)
class_sandbox_pool = pytest.fixture(scope="class")(_sandbox_pool)
module_sandbox_pool = pytest.fixture(scope="module")(_sandbox_pool)
session_sandbox_pool = pytest.fixture(scope="session")(_sandbox_pool)
