"""Work on files, which is written for those who wait, done for those who must not.

Copying a tree is a long dialogue with init, and thousands of lines of checks; it exists once, as code that waits for each answer. Here it runs on a
stack of its own (a greenlet), in the thread of the loop: where it would wait for an answer, its stack is put aside, the event loop waits, and
the work goes on where it was. So do SQLAlchemy's asyncio and others. It is neither a thread nor a second copy of the code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from sandbox._beginning import START_S
from sandbox._launch.driver import Channel
from sandbox.aio._hub import Deaf, hub
from sandbox.errors import BrokenError, UnsupportedError

_T = TypeVar("_T")
_bridges: dict[Any, Deaf] = {}  # the greenlets that are on their way


def _greenlets() -> Any:  # noqa: ANN401 - it ships no types
    try:
        import greenlet
    except ImportError:
        raise UnsupportedError(
            "files of a container, and users who are looked up there, in asyncio", feature="greenlet", remedy="install sandbox[aio], which brings it"
        ) from None
    return greenlet


def wait_in_bridge(channel: Channel | None) -> None:
    """A `Session.patience`: in a bridge the event loop waits for the answer on *channel*; elsewhere nobody does, for whoever asks waits.

    Raises: CancelledError before a question, if the bridge was cancelled.
    """
    here = _greenlets().getcurrent()
    deaf = _bridges.get(here)
    if deaf is None:
        return
    if channel is not None:
        if not here.parent.switch(channel.fileno()):
            raise BrokenError(f"the container's init said nothing for {START_S:.0f} s")
    elif deaf.cancelled is not None:
        raise deaf.cancelled


async def bridge(work: Callable[[], _T]) -> _T:
    """Call *work*; where that waits for init, the loop's other tasks go on.

    When it is cancelled, *work* goes on until it has the answer that it waits for, and gets CancelledError when it asks again.
    Needs: greenlet. Raises: what *work* does; UnsupportedError.
    """
    here, hub_ = _greenlets().greenlet(work), hub()
    with Deaf() as deaf:
        _bridges[here] = deaf
        try:
            asked = here.switch()
            while not here.dead:
                asked = here.switch(await deaf.wait(partial(hub_.ready, asked, timeout=START_S)))
        except BaseException as error:
            if not here.dead:  # the loop is no more
                here.throw(error)
            raise
        finally:
            del _bridges[here]
        return cast("_T", asked)
