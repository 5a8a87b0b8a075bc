"""Fixtures of tests on the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.live.loops import Run


@pytest.fixture(scope="module")
def libuv_has_its_pipe() -> None:
    """It opens one for signals, once per process, which is not to be taken for ours."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture(params=["asyncio", "uvloop"])
def aio_run(request: pytest.FixtureRequest) -> Run:
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
