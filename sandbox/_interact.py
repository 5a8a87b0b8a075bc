"""`interact`: two programs that talk to each other, as in interactive problems: an interactor, which judges, and a solution.

Theory of operation
-------------------
Two pipes join them, each one's output to the other's input, and nothing of ours is in between. Who ended first is known exactly
nevertheless: we keep the reading ends too, do not read, and have the kernel tell when nobody writes to one any more. It tells that in
the order in which it happened, before whoever reads there can do anything about it. The price is that a program notices that nobody
reads its output when the other has ended, not when that only closes its input and lives on. Once a program has ended, our copy of its input is
closed, and the other gets SIGPIPE or EPIPE; end of file it sees at once.

With a transcript, what they say goes through us (`_Relay`): at most `BUFFER` bytes in each direction, none of which is read before the other
side has taken what was there; a program that does not read holds up the one that writes, as with a pipe.

When one has ended, the other has *linger* seconds left. In the end both are dead, whatever happens.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import evolve, field, frozen

from sandbox._arguments import Prepared, text_of
from sandbox._pump import GRACE_S
from sandbox._reactor import Reactor
from sandbox._result import Result, Status
from sandbox._runs import Run
from sandbox._types import PIPE, Argument, Size, to_seconds, to_size
from sandbox._wiring import wire_up
from sandbox.cg import Limits
from sandbox.container import Container, keyword_defaults, prepare_run
from sandbox.errors import UsageError, raise_shortage

if TYPE_CHECKING:
    from sandbox._started import Started
    from sandbox.aio import Container as AioContainer

Role = Literal["interactor", "solution"]
ROLES: Final[tuple[Role, Role]] = ("interactor", "solution")
BUFFER: Final = 65536  # a pipe's
CHUNK_COST: Final = 64  # what a chunk of the transcript counts at least: it is an object, and the program decides how many there are
LINGER_S: Final = 2.0
_OURS: Final = frozenset(("argv", "input", "stdin", "stdout", "text", "encoding", "errors", "check"))
_BYTES: Final = text_of(False, None, "strict")


class Verdict(enum.Enum):
    """What became of an interaction."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    SOLUTION_FAILED = "solution failed"
    INTERACTOR_FAILED = "interactor failed"


class Party:
    """One of two programs that are to talk: *argv* in *container*, with the options of `Container.exec`.

    Its standard input and output are the other one's; its standard error is captured, unless *stderr* says otherwise.
    """

    def __init__(self, container: Container | AioContainer, argv: Sequence[Argument], **options: Any) -> None:  # noqa: ANN401 - exec's
        known = keyword_defaults("exec").keys() - _OURS
        if unknown := options.keys() - known:
            raise UsageError(f"Party: {min(unknown)!r} is not for a program that talks to another; it can have {', '.join(sorted(known))}")
        self.container, self.argv, self.options = container, argv, options

    def __repr__(self) -> str:
        return f"Party({self.container!r}, {self.argv!r})"


@frozen
class Chunk:
    """What one of them has said at once: *time* in seconds since the start."""

    time: float
    role: Role
    data: bytes


@frozen
class Interaction:
    """How two programs got on.

    `first` is the one whose output ended first: by its end, or because it closed it. `broken_by` is the one that has left the other
    speaking to nobody: it has ended before it had read everything, or the other was ended by SIGPIPE.
    `transcript` is None unless it was asked for; `transcript_truncated` says that more was said than it was to hold.
    """

    verdict: Verdict
    interactor: Result
    solution: Result
    first: Role
    broken_by: Role | None
    transcript: tuple[Chunk, ...] | None = field(default=None, repr=False)
    transcript_truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether the solution was accepted."""
        return self.verdict is Verdict.ACCEPTED


def judge(interactor: Result, solution: Result, first: Role) -> Verdict:
    """Who is right. A solution's failure counts against it unless the interactor had rejected it, or had ended, before."""
    has_failed = not solution.ok and not _is_broken_pipe(solution)
    if has_failed and first == "solution":
        return Verdict.SOLUTION_FAILED
    if interactor.status is Status.EXITED:
        if interactor.exit_code != 0:
            return Verdict.REJECTED
        return Verdict.SOLUTION_FAILED if has_failed else Verdict.ACCEPTED
    # It had more to say, and nobody was there: that is no fault of its own.
    return Verdict.REJECTED if _is_broken_pipe(interactor) and first == "solution" else Verdict.INTERACTOR_FAILED


def _is_broken_pipe(result: Result) -> bool:
    return result.status is Status.SIGNALED and result.signal == signal.SIGPIPE


class _Transcript:
    """What was said, up to *limit* bytes."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._start = time.monotonic()
        self.chunks: list[Chunk] = []
        self.is_cut = False

    def note(self, role: Role, data: bytes) -> None:
        """Add what *role* said."""
        kept = data[: self._left]
        self.is_cut |= len(kept) < len(data)
        if kept:
            self.chunks.append(Chunk(time.monotonic() - self._start, role, kept))
            self._left -= min(self._left, max(len(kept), CHUNK_COST))


class _Line:
    """One direction: from the output of *role* to the other's input. *on_quiet* is called once, when nobody writes any more."""

    def __init__(self, reactor: Reactor, role: Role, on_quiet: Callable[[Role], None]) -> None:
        self._reactor, self._on_quiet = reactor, on_quiet
        self._role: Role = role
        self._fds: list[int] = []
        self._watched: set[int] = set()
        self._is_quiet = False
        self.is_broken = False  # who should have read has left something
        self.source, self.speaker = self._pipe()
        self.listener = self.source

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe2(os.O_CLOEXEC)
        self._fds += ends
        return ends

    def begin(self) -> None:
        """The programs have their ends: watch, and let go of our copies."""
        # In this order: a writer that has ended already hangs up now, and whoever reads there learns of it after us.
        self._watch(self.source, 0)
        self._close(self.speaker)

    def _watch(self, fd: int, mask: int | None) -> None:
        if fd in self._watched:
            self._watched.discard(fd)
            self._reactor.unregister(fd)
        if mask is not None and fd in self._fds:
            self._reactor.register(fd, mask, self._on_event)
            self._watched.add(fd)

    def _on_event(self, fd: int, event: int) -> None:
        del event  # nothing but a hang-up is reported
        self._watch(fd, None)
        self.end_speaking()

    def end_speaking(self) -> None:
        """Nobody writes any more."""
        if not self._is_quiet:
            self._is_quiet = True
            self._on_quiet(self._role)

    def end_listening(self) -> None:
        """Who should have read has ended."""
        for fd in self._fds:
            self.is_broken |= bool(_unread(fd))
        self.close()

    def _close(self, fd: int) -> None:
        if fd in self._fds:
            self._watch(fd, None)
            self._fds.remove(fd)
            os.close(fd)

    def close(self) -> None:
        """Close all that is ours."""
        for fd in [*self._fds]:
            self._close(fd)


class _Relay(_Line):
    """A line that goes through us."""

    def __init__(self, reactor: Reactor, role: Role, on_quiet: Callable[[Role], None], transcript: _Transcript) -> None:
        super().__init__(reactor, role, on_quiet)
        self._transcript = transcript
        self._held = b""
        try:
            self.listener, self._sink = self._pipe()
        except BaseException:
            self.close()
            raise
        os.set_blocking(self.source, False)
        os.set_blocking(self._sink, False)

    def begin(self) -> None:
        self._close(self.listener)
        self._watch(self.source, select.POLLIN)
        self._close(self.speaker)

    def _on_event(self, fd: int, event: int) -> None:
        del event
        if fd == self.source:
            self._read()
        if self._held:
            self._write()

    def _read(self) -> None:
        self._held = os.read(self.source, BUFFER)
        if self._held:
            self._transcript.note(self._role, self._held)
            return
        self.end_speaking()
        self.close()  # the other reads to the end of what is in its pipe

    def _write(self) -> None:
        try:
            self._held = self._held[os.write(self._sink, self._held) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.is_broken, self._held = True, b""
            self.close()
            return
        self._watch(self._sink, select.POLLOUT if self._held else None)
        self._watch(self.source, None if self._held else select.POLLIN)

    def end_listening(self) -> None:
        self.is_broken |= bool(self._held)
        super().end_listening()


def _unread(pipe: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


class Match:
    """An interaction on its way. Whoever drives it dispatches *reactor*, calls `on_time` at `next_at`, and is told by *on_change* when that, or
    `is_over`, has changed. Close it.
    """

    def __init__(self, reactor: Reactor, *, linger: float, transcript: int | None, on_change: Callable[[], None]) -> None:
        self._reactor, self._linger, self._on_change = reactor, linger, on_change
        self._transcript = None if transcript is None else _Transcript(transcript)
        self._lines: list[_Line] = []
        self._runs: list[Run] = []
        self._quiet: list[Role] = []
        self._linger_at: float | None = None
        self._give_up_at: float | None = None
        self._error: BaseException | None = None

    def begin(self, sides: Sequence[tuple[Started, Prepared, Any]]) -> None:
        """Start both; when only the first can be started, it is killed, and `outcome` raises the error once it has ended."""
        try:
            for role in ROLES:
                self._lines.append(self._line(role))
            for (live, prepared, stderr), hears, speaks in zip(sides, reversed(self._lines), self._lines, strict=True):
                wiring = wire_up(hears.listener, speaks.speaker, stderr, prepared.fds, tty=False)
                self._runs.append(Run(live, prepared, wiring, None, text=_BYTES, reactor=self._reactor, on_end=self._on_end))
            for line in self._lines:
                line.begin()
        except BaseException as error:
            if not self._runs:
                self.close()
                raise
            self._error = error
            self.kill()

    def _line(self, role: Role) -> _Line:
        if self._transcript is None:
            return _Line(self._reactor, role, self._quiet.append)
        return _Relay(self._reactor, role, self._quiet.append, self._transcript)

    @property
    def is_over(self) -> bool:
        """Whether both have ended."""
        return all(run.is_over for run in self._runs)

    @property
    def next_at(self) -> float | None:
        """When (time.monotonic()) to call `on_time` at the latest."""
        times = [self._linger_at, self._give_up_at, *(run.late_at for run in self._runs if not run.is_over)]
        return min((at for at in times if at is not None), default=None)

    def on_time(self) -> None:
        """Do what the time has come for."""
        now = time.monotonic()
        if self._linger_at is not None and now >= self._linger_at:
            self.kill()
        for run in self._runs:
            if any(at is not None and now >= at for at in (run.late_at, self._give_up_at)):
                run.give_up()

    def _on_end(self, run: Run) -> None:
        at = self._runs.index(run)
        self._lines[at].end_speaking()
        self._lines[1 - at].end_listening()
        if run.has_failed:  # the other one has nobody to talk to
            self.kill()
        elif self._linger_at is self._give_up_at is None:
            self._linger_at = time.monotonic() + self._linger
        self._on_change()

    def kill(self) -> None:
        """Kill both; their ends come as ever, or they are given up."""
        self._linger_at, self._give_up_at = None, time.monotonic() + GRACE_S
        for run in self._runs:
            run.kill()

    def close(self) -> None:
        """Let go of everything; what still runs is killed, without waiting."""
        for run in self._runs:
            run.abandon()
        for line in self._lines:
            line.close()

    def outcome(self) -> Interaction:
        """What came of it, once `is_over`. Raises: as `Container.exec`."""
        if self._error is not None:
            raise self._error
        interactor, solution = (run.result for run in self._runs)
        first = self._quiet[0]
        breakers: set[Role] = set()
        for role, line, result in zip(reversed(ROLES), self._lines, (interactor, solution), strict=True):
            if line.is_broken or _is_broken_pipe(result):
                breakers.add(role)
        return Interaction(
            judge(interactor, solution, first),
            interactor,
            solution,
            first,
            first if first in breakers else next(iter(breakers), None),
            None if self._transcript is None else tuple(self._transcript.chunks),
            self._transcript is not None and self._transcript.is_cut,
        )


@frozen
class Rules:
    """What holds for both, checked."""

    linger: float
    transcript: int | None
    cpuset: Limits | None
    timeout: float | None

    @classmethod
    def checked(cls, linger: float, transcript: Size | None, cpuset: Any, timeout: float | None) -> Rules:  # noqa: ANN401 - Limits'
        """Raises: UsageError."""
        return cls(
            to_seconds(linger, what="linger"),
            None if transcript is None else to_size(transcript, what="transcript"),
            None if cpuset is None else Limits(cpuset=cpuset),
            None if timeout is None else to_seconds(timeout, what="timeout"),
        )

    def options(self, parties: tuple[Party, Party]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What each is run with. An interactor that is given no time of its own waits longer than the solution may take: it is not to blame."""
        for party in parties:
            if not isinstance(party, Party):
                raise UsageError(f"{party!r} is no Party; give Party(container, [program, ...])")
        interactor, solution = ({**keyword_defaults("exec"), "stderr": PIPE, **party.options} for party in parties)
        if solution["timeout"] is None:
            solution["timeout"] = self.timeout
        if interactor["timeout"] is None and solution["timeout"] is not None:
            interactor["timeout"] = to_seconds(solution["timeout"], what="timeout") + self.linger
        return interactor, solution

    def side(self, live: Started, prepared: Prepared, options: Mapping[str, Any]) -> tuple[Started, Prepared, Any]:
        """What `Match.begin` takes."""
        if self.cpuset is not None:
            limits = evolve(prepared.limits or Limits(), cpuset=self.cpuset.cpuset)
            prepared = evolve(prepared, limits=limits, accounted=True)
        return live, prepared, options["stderr"]


def interact(
    interactor: Party,
    solution: Party,
    *,
    timeout: float | None = None,
    linger: float = LINGER_S,
    transcript: Size | None = None,
    cpuset: Any = None,  # noqa: ANN401 - as Container's
) -> Interaction:
    """Let two programs talk: each one's standard output is the other's standard input. Blocks until both have ended.

    timeout: seconds for a party that has no timeout of its own; the interactor gets *linger* more, so that the one who keeps the other waiting
        is the one who is late. linger: seconds that the other one has once one has ended; then it is killed.
    transcript: keep what they say, up to so many bytes (each chunk counts for 64 at least); what they say then passes through this process.
    cpuset: CPUs that both run on, as of `Container`: on one and the same they take turns, and none waits for the other to be woken elsewhere.

    The verdict is the interactor's: exit code 0 accepts, any other rejects. But a solution that fails by itself, before the interactor has
    spoken its verdict, has failed.

    Raises: as `Container.exec`, when one of them cannot be started; nothing runs any more then.
    """
    rules, parties = Rules.checked(linger, transcript, cpuset, timeout), (interactor, solution)
    sides: list[tuple[Started, Prepared, Any]] = []
    for party, options in zip(parties, rules.options(parties), strict=True):
        if not isinstance(party.container, Container):
            raise UsageError(f"{party!r}: its container is no sandbox.Container; for one of asyncio's, use sandbox.aio.interact")
        sides.append(rules.side(*prepare_run(party.container, party.argv, options), options))
    try:
        with contextlib.closing(Reactor()) as reactor:
            match = Match(reactor, linger=rules.linger, transcript=rules.transcript, on_change=lambda: None)
            with contextlib.closing(match):
                match.begin(sides)
                try:
                    _drive(match, reactor)
                except BaseException:  # Ctrl-C, say: both end before we go on
                    match.kill()
                    _drive(match, reactor)
                    raise
                return match.outcome()
    except OSError as error:
        raise_shortage(error, "let two programs talk")
        raise


def _drive(match: Match, reactor: Reactor) -> None:
    while not match.is_over:
        at = match.next_at
        if not reactor.dispatch(None if at is None else max(0.0, at - time.monotonic())):
            match.on_time()
