"""Run a test's body in a network namespace of its own: a thread goes there, and ends there. What it starts is there too."""

from __future__ import annotations

import functools
import subprocess
import threading
from collections.abc import Callable
from typing import ParamSpec

from sandbox._sys.calls import unshare
from sandbox._sys.constants import CLONE_NEWNET

P = ParamSpec("P")


def alone(body: Callable[P, None]) -> Callable[P, None]:
    """Decorate a test: what it raises comes out as usual."""

    @functools.wraps(body)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        raised: list[BaseException] = []

        def work() -> None:
            try:
                unshare(CLONE_NEWNET)
                body(*args, **kwargs)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]

    return test


def said(*argv: str) -> str:
    """What a program says, run where the calling thread is."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
