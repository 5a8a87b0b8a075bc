"""A program of the host that works for a network, and ends with it: started by the launcher, and so nobody's child here."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from sandbox import _plan as plan
from sandbox._beginning import Beginning
from sandbox._compile import helper_plan
from sandbox._launch import codec, wire
from sandbox._launch.driver import Channel
from sandbox._sys.constants import CLONE_NEWUSER
from sandbox._sys.fds import Fd
from sandbox.errors import BrokenError, SetupError

_UNCHANGED: Final = 0xFFFFFFFF  # setresuid(2): -1 leaves an id as it is
_READY_S: Final = 20.0
_WORDS: Final = 4096  # of what it has to say about its failure; more is refused to it (EPERM), and cannot fill anybody's memory
_NOTHING: Final = plan.Plan()
_ENV: Final = (b"PATH=/usr/sbin:/usr/bin:/sbin:/bin", b"LC_ALL=C.UTF-8")


class Companion(Beginning):
    """The program. It has the caller's rights and namespaces, and nothing but /dev/null to read from and to write to.

    It ends by SIGKILL with `close`, and with the launcher, which ends with this process, in whatever way (PR_SET_PDEATHSIG of the program).
    """

    def __init__(self, argv: Sequence[str], fds: Mapping[int, int], *, ready: int, user: int | None = None) -> None:
        """Start it with *fds* (its number -> ours, copied), and wait until it says something on its descriptor *ready*, a pipe to us.

        user: a user namespace in which it is root, instead of having the caller's rights; None: ours.
        Raises: SetupError, with what the program said; BrokenError.
        """
        super().__init__(helper_plan(_NOTHING, ()))
        self._argv = argv
        with ExitStack() as stack:
            words = stack.enter_context(_paper())
            nothing = stack.enter_context(Fd.open(os.devnull, os.O_RDWR))
            ours, theirs = (stack.enter_context(Fd(fd)) for fd in os.pipe2(os.O_CLOEXEC))
            given = {0: nothing.fileno(), 1: nothing.fileno(), 2: words.fileno(), ready: theirs.fileno(), **fds}
            joins = () if user is None else ((len(given) + 1, CLONE_NEWUSER),)
            self.begin(_request(argv, given, joins), [*given.values(), *(() if user is None else (user,))])
            with self._ending_on_failure():
                self._await_word(ours.fileno(), words)

    def _take_over(self, channel: Channel) -> None:
        raise AssertionError(f"{channel!r}: a program says nothing of READY")

    def _await_word(self, ready: int, words: Fd) -> None:
        channel = self._starting
        if channel is None:
            raise AssertionError("begin() comes first")
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        poll.register(channel.fileno(), select.POLLIN)
        deadline = time.monotonic() + _READY_S
        while (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                if fd == ready:
                    self._await_clone(channel)
                    return
                self._hear(channel, words)
        raise SetupError(self._argv[0], errno.ETIMEDOUT, step="network", hint=f"it was not ready within {_READY_S:.0f} s; {_said(words)}")

    def _hear(self, channel: Channel, words: Fd) -> None:
        try:
            self._on_event(channel)
        except BrokenError:
            raise SetupError(self._argv[0], errno.ECHILD, step="network", hint=_said(words) or "it ended without a word") from None

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        if self._closed or self.pidfd < 0 or self.owner != os.getpid():
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Kill it, and wait until it has gone; in a forked child, close the copies. May be called twice."""
        channel, self._starting = self._starting, None
        self._closed = True
        if channel is None:
            return
        try:
            if self.owner == os.getpid():
                self.kill()
                with contextlib.suppress(TimeoutError):  # the launcher is stopped, say; what was killed dies all the same
                    self._await_gone(channel)
        finally:
            channel.close()
            self._drop_pidfd(kill=False)


def _paper() -> Fd:
    """A file in memory that cannot grow."""
    paper = Fd(os.memfd_create("sandbox-words", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(paper.fileno(), _WORDS)
        fcntl.fcntl(paper.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    except BaseException:
        paper.close()
        raise
    return paper


def _said(words: Fd) -> str:
    text = os.pread(words.fileno(), _WORDS, 0).rstrip(b"\0").decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join("".join(sign if sign.isprintable() else "?" for sign in line) for line in lines[-3:])[-400:]


def _request(argv: Sequence[str], fds: Mapping[int, int], joins: tuple[tuple[int, int], ...]) -> bytes:
    nothing = helper_plan(_NOTHING, ())
    words = tuple(map(os.fsencode, argv))
    program = codec.ExecRequest(
        argv=words,
        candidates=(words[0],),
        env=_ENV,
        uid=_UNCHANGED,
        gid=_UNCHANGED,
        groups=None,
        fds=tuple((slot, target) for slot, target in enumerate(fds, start=1)),
    )
    return codec.encode_create(
        codec.CreateRequest(
            clone_flags=0,
            flags=wire.CREATE_DIRECT,
            uid=_UNCHANGED,
            gid=_UNCHANGED,
            uid_map=codec.encode_maps(()),
            gid_map=codec.encode_maps(()),
            joins=joins,
            cleanup=(),
            groups=b"",
            host_ops=nothing.all_host_ops,
            init_ops=nothing.all_init_ops,
            exec=codec.encode_exec(program),
        )
    )
