"""`aio.interact`: two programs that talk to each other, beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import Any

from sandbox._driven import Driven
from sandbox._interact import LINGER_S, Interaction, Match, Party, Rules
from sandbox._types import Size
from sandbox.aio._bridge import bridge
from sandbox.aio._container import Container
from sandbox.aio._hub import Deaf, hub
from sandbox.container import prepare_run
from sandbox.errors import UsageError, raise_shortage


async def interact(
    interactor: Party,
    solution: Party,
    *,
    timeout: float | None = None,
    linger: float = LINGER_S,
    transcript: Size | None = None,
    cpuset: Any = None,  # noqa: ANN401 - as Container's
) -> Interaction:
    """Let two programs talk; arguments, outcome and errors are those of `sandbox.interact`, containers those of this package.

    Cancelled, it kills both, and waits for their end.
    """
    rules, parties = Rules.checked(linger, transcript, cpuset, timeout), (interactor, solution)
    sides: list[Any] = []
    for party, options in zip(parties, rules.options(parties), strict=True):
        driven = driven_of(party)
        prepare = partial(prepare_run, driven, party.argv, options)
        live, prepared = await bridge(prepare) if driven.needs_files(options["user"]) else prepare()
        sides.append(rules.side(live, prepared, options))
    try:
        return await _Driver(rules).drive(sides)
    except OSError as error:
        raise_shortage(error, "let two programs talk")
        raise


def driven_of(party: Party) -> Driven:
    if not isinstance(party.container, Container):
        raise UsageError(f"{party!r}: its container is no aio.Container; for a sandbox.Container, use sandbox.interact")
    return party.container.driven


class _Driver:
    """Gives a match its time."""

    def __init__(self, rules: Rules) -> None:
        self._hub, self._over = hub(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._match = Match(self._hub.reactor, linger=rules.linger, transcript=rules.transcript, on_change=self._on_change)

    def _on_change(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._match.is_over:
            self._over.set()
        elif (at := self._match.next_at) is not None:
            self._timer = asyncio.get_running_loop().call_later(at - time.monotonic(), self._on_time)

    def _on_time(self) -> None:
        self._match.on_time()
        self._on_change()

    async def drive(self, sides: list[Any]) -> Interaction:
        with contextlib.ExitStack() as stack:
            stack.callback(self._hub.tidy)
            stack.callback(self._match.close)
            self._match.begin(sides)
            self._on_change()
            try:
                await self._over.wait()
            except asyncio.CancelledError:
                self._match.kill()
                self._on_change()
                await Deaf().wait(self._over.wait)
                raise
            return self._match.outcome()
        raise AssertionError("unreachable")
