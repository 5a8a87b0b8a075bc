"""A container and its programs for those who do their own waiting: what `sandbox.aio` is made of.

Each operation of `Container` that waits has a twin here which does not: it says what to wait for, and goes on when it is called again. The
checks, the messages and the order of things are `Container`'s own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sandbox import _beginning, _session, _start
from sandbox._arguments import Prepared, text_of
from sandbox._launch import codec, driver
from sandbox._launch.driver import Channel
from sandbox._pump import GRACE_S, Streams
from sandbox._reactor import Reactor
from sandbox._run import Spec, Text
from sandbox._runs import Run
from sandbox._session import Session
from sandbox._start import Steps
from sandbox._started import Started
from sandbox._sys.fds import close_all
from sandbox._types import PIPE, Argument, StrPath, to_bool
from sandbox._wiring import Wiring, wire_up
from sandbox.cg import Leaf
from sandbox.container import Container, input_bytes, keyword_defaults, prepare_run, unknown_words
from sandbox.errors import ClosedError, SetupError, UsageError, raise_shortage
from sandbox.process import Process

if TYPE_CHECKING:
    from sandbox.net.counters import NetStats

GONE_S: Final = _beginning.GONE_S
STARTED_S: Final = GRACE_S + 30  # as `Process` waits


def complete(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, those that were not given included. Raises: UsageError for an unknown one."""
    known = keyword_defaults(method)
    if unknown := given.keys() - known.keys():
        raise unknown_words(method, method, unknown)
    return {**known, **given}


class Driven(Container):
    """A container whose events its owner waits for. *patience* waits for init's answer to a request for files."""

    def __init__(self, image: StrPath | None, patience: Callable[[Channel | None], None], **options: Any) -> None:  # noqa: ANN401 - Container's
        super().__init__(image, **options)
        self._patience = patience

    # ---- Life ----

    def create_steps(self) -> Steps[None]:
        """As `create`; see `_start.start_steps`. For one caller at a time."""
        if self._closed:
            raise ClosedError("the container was closed; make another one")
        if self._started is not None:
            return
        try:
            joins = self._wishes.joined
            self._started = yield from _start.start_steps(self._networked_spec(), joins=joins, attach=self._attach)
            self._started.session.patience = self._patience
        except OSError as error:
            raise_shortage(error, "make a container")
            raise

    @staticmethod
    def launcher_fd() -> int:
        """The socket of the launcher, which is started now if need be; where it is writable, `create_steps` asks without waiting."""
        return driver.current().fileno()

    def begin_close(self) -> Session | None:
        """Kill everything; gives the session whose end is to be awaited (`Session.take_end`) before `close`, if there is one."""
        self._closed = True
        started = self._started
        if started is None or started.session.owner != os.getpid():
            return None
        started.begin_close()
        return started.session

    @property
    def session(self) -> Session:
        """Raises: ClosedError."""
        return self._session()

    @property
    def started(self) -> Started:
        """Raises: ClosedError."""
        return self._live()

    def counters(self) -> NetStats | None:
        """Of all networks that it is in, for a monitor."""
        return self._net_totals()

    @property
    def is_open(self) -> bool:
        return self._started is not None

    # ---- Programs ----

    def needs_files(self, user: int | str | None) -> bool:
        """Whether `prepare` may have to look into the container's files for *user*."""
        name = self.spec.user if user is None else str(user)
        return name not in self._identities and (name != self.spec.user or self._live().identity is None)

    def prepare(self, argv: Sequence[Argument], o: dict[str, Any]) -> tuple[Prepared, Text]:
        """Check the arguments of a run."""
        text = text_of(o["text"], o["encoding"], o["errors"])
        return prepare_run(self, argv, o)[1], text

    def begin(self, prepared: Prepared, text: Text, o: dict[str, Any], reactor: Reactor, on_end: Callable[[Run], None]) -> Run:
        """Start what `exec` runs, with all of its arguments, as `prepare` has checked them."""
        to_bool(o["check"], what="check")
        stdin, data = o["stdin"], o["input"]
        if data is not None:
            data, stdin = input_bytes(data, stdin, o["encoding"], o["errors"], text=o["text"]), PIPE
        live = self._live()
        if not live.session.has_room:
            hint = "the container runs as many programs at once as it can, or does not answer"
            raise SetupError("run a program", errno.EAGAIN, step="shortage", hint=hint)
        try:
            wiring = wire_up(stdin, o["stdout"], o["stderr"], prepared.fds, tty=False)
            return Run(live, prepared, wiring, data, text=text, reactor=reactor, on_end=on_end)
        except OSError as error:
            raise_shortage(error, "run a program")
            raise

    def launch(self, prepared: Prepared, text: Text, o: dict[str, Any]) -> Launch:
        """Start what `popen` starts, with all of its arguments, as `prepare` has checked them."""
        live = self._live()
        if o["tty"] and not (o["stdin"] is o["stdout"] is o["stderr"] is None):
            raise UsageError("tty=True gives the program one terminal for stdin, stdout and stderr; leave them out")
        try:
            wiring = wire_up(o["stdin"], o["stdout"], o["stderr"], prepared.fds, tty=o["tty"])
            return Launch(live, prepared, wiring, text)
        except OSError as error:
            raise_shortage(error, "start a program")
            raise


class DrivenProcess(Process):
    """A `Process` whose end its owner waits for: when `fileno` is readable, ``wait(0)`` does not raise TimeoutError."""

    IS_WAITING: ClassVar[bool] = False

    @property
    def late_at(self) -> float | None:
        """When (time.monotonic()) to call `give_up`."""
        return self._give_up

    @property
    def spec(self) -> Spec:
        return self._spec

    @property
    def text(self) -> Text:
        return self._text

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to wait for."""
        return self._has_ended or self._is_lost

    @property
    def limits(self) -> tuple[int, int]:
        """How many bytes of stdout and of stderr `communicate` keeps."""
        return self._limits()

    def keep(self, captured: Streams) -> None:
        """Note what `communicate` has read, for the result."""
        self._captured = captured

    def give_up(self) -> None:
        """Let go of it: init has not answered."""
        if not self.is_over:
            self._is_lost = True
            self._finish(False)


class Launch:
    """A program that was asked for, until it has said that it started."""

    def __init__(self, live: Started, prepared: Prepared, wiring: Wiring, text: Text) -> None:
        self._spec, self._wiring, self._text = prepared.spec, wiring, text
        self._session = live.session
        self._leaf: Leaf | None = live.leaf(prepared, wiring)
        self._channel, self._finish = live.session.launch(prepared.spec, wiring, self._leaf, leaves=live)

    def fileno(self) -> int:
        """What is readable when `process` does not wait, and `take_end` neither."""
        return self._channel.fileno()

    def process(self) -> DrivenProcess:
        """The program, as it has said that it started. Raises: as `Container.popen`."""
        try:
            return DrivenProcess(self._spec, self._wiring, self._channel, leaf=self._leaf, text=self._text, finish=self._finish)
        except BaseException as error:
            self._wiring.close()
            self._finish(isinstance(error, (SetupError, ValueError)))
            raise

    def kill(self) -> None:
        """Kill it; wait for its end then (`take_end`)."""
        self._channel.send(*_session.KILL_RUN)

    def take_end(self) -> bool:
        """Take the next event, which must be there; whether it was the last. Then all is given back."""
        got = self._channel.receive(0)
        if got is not None:
            close_all(got[1])
        if got is None or isinstance(got[0], codec.End):
            self.release(sound=got is not None)
            return True
        return False

    def release(self, *, sound: bool) -> None:
        """Give everything back; an unsound one's program is killed with its channel. In a forked child only its copies are closed."""
        self._wiring.close()
        if self._session.owner == os.getpid():
            self._finish(sound)
        else:
            self._channel.close()
