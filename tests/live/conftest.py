"""Fixtures for live tests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest


@pytest.fixture(scope="module")
def libuv_has_its_pipe() -> None:
    """It opens one for signals, once per process, which is not to be taken for ours."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine in a loop of its own."""
    if request.param == "asyncio":
        return asyncio.run
    uvloop = pytest.importorskip("uvloop")

    def in_uvloop(main: Coroutine[Any, Any, Any]) -> Any:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(main)
        finally:
            gc.collect()  # it closes some of its own descriptors then

    return in_uvloop
