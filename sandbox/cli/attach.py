"""``sandbox attach``, and ``sandbox start --attach``: our streams are those of a program that outlives us, in Docker's words."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from types import FrameType
from typing import Final

from attrs import define, field

from sandbox import UsageError
from sandbox.cli import keys as detaching
from sandbox.cli.keys import Keys
from sandbox.cli.outcome import outcome
from sandbox.cli.parser import Parser
from sandbox.cli.relay import write_all
from sandbox.cli.run import Forwarding
from sandbox.cli.terminal import Terminal
from sandbox.keep import Attachment, Kept, find

CHUNK: Final = 4096
_LOOK_MS: Final = 2000  # after which we ask whether the keeper is still there for us
_LOOKS_MS: Final = 60_000
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
Carry = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str]) -> int:
    """``sandbox attach``: its exit code is the program's; 0 after the keys that detach."""
    parser = Parser(prog="sandbox attach", description="Be attached to the program of a container: its streams are ours.", allow_abbrev=False)
    detaching.add(parser)
    parser.add_argument("--no-stdin", action="store_true", help="pass no input on")
    parser.add_argument(
        "--sig-proxy", nargs="?", const="true", choices=("true", "false"), default="true", help="send signals on; not with a terminal (true)"
    )
    parser.add_argument("container", metavar="CONTAINER")

    def carry_out() -> int:
        parsed = parser.parse_args(list(arguments))
        return attach(find(parsed.container), parsed, start=False)

    return outcome("sandbox attach", carry_out)


def add_start(parser: Parser, start_each: Carry) -> Carry:
    """The options of ``sandbox start``; *start_each* carries it out where nobody wants to be attached."""
    parser.add_argument("--attach", "-a", action="store_true", help="be attached to it; one container only")
    parser.add_argument("--interactive", "-i", action="store_true", help="pass our input on, and be attached")
    detaching.add(parser)
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")

    def carry_out(parsed: argparse.Namespace) -> int:
        if not parsed.attach and not parsed.interactive:
            return start_each(parsed)
        if len(parsed.containers) > 1:
            raise UsageError("you cannot start and attach multiple containers at once")
        parsed.no_stdin, parsed.sig_proxy = not parsed.interactive, "true"
        return attach(find(parsed.containers[0]), parsed, start=True)

    return carry_out


def attach(kept: Kept, parsed: argparse.Namespace, *, start: bool) -> int:
    """Be attached to *kept* until its program ends, or the keys come; the exit code. *start*: start it, if it does not run."""
    typed = Keys(detaching.to_keys(parsed.detach_keys))
    try:
        with kept.attach(start=start) as attached, contextlib.ExitStack() as stack:
            reads = attached.input is not None and not parsed.no_stdin
            if attached.terminal is not None:
                stack.enter_context(_ended_by_signals())
                terminal = stack.enter_context(Terminal(interactive=reads))
                stack.enter_context(_resized(attached, terminal))
            else:
                typed.keys = b""
                if parsed.sig_proxy == "true":
                    stack.enter_context(stack.enter_context(Forwarding()).to(_Target(kept)))
            _Relay(attached, typed, reads=reads).run()
    except _EndedError as error:  # the program is not to hear of it
        return 128 + error.number
    if typed.were_typed:
        print(detaching.DETACHED, file=sys.stderr)
    return 0 if attached.result is None else attached.result.shell_code


class _EndedError(BaseException):
    """A signal wants us to end: not before the terminal is as it was."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _ended_by_signals() -> Generator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        del frame
        raise _EndedError(number)

    old = {number: signal.signal(number, end) for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _resized(attached: Attachment, terminal: Terminal) -> Generator[None]:
    attached.resize(*terminal.size)
    old = signal.signal(signal.SIGWINCH, lambda _number, _frame: attached.resize(*terminal.size))
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, old)


@define
class _Target:
    """Whom signals are for: the program, not the one who is attached to it."""

    kept: Kept

    def send_signal(self, signal: int) -> None:
        """Send one."""
        self.kept.kill(signal)


@define
class _Relay:
    """Moves what is typed one way, and what is written the other."""

    attached: Attachment
    typed: Keys
    reads: bool
    _pending: bytes = field(default=b"", init=False)

    def run(self) -> None:
        """Until the program ends, or the keys came. Raises: BrokenError: its keeper has gone, or says nothing more."""
        pause = _LOOK_MS
        while self.attached.result is None:
            poll = select.poll()
            poll.register(self.attached, select.POLLIN)
            if self._pending:
                poll.register(self._input, select.POLLOUT)
            elif self.reads:
                poll.register(0, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(pause)}
            if not ready:
                self.attached.check()
            pause = _LOOK_MS if ready else min(2 * pause, _LOOKS_MS)
            if self._pending and self._input in ready:
                self._feed()
            if 0 in ready:
                self._type()
            if self.typed.were_typed:
                self._feed()  # what came before them; a program that does not read keeps nobody
                return
            if self.attached.fileno() in ready:
                for record in self.attached.read():
                    write_all(record.stream, record.data)

    @property
    def _input(self) -> int:
        return -1 if self.attached.input is None else self.attached.input

    def _type(self) -> None:
        try:
            data = os.read(0, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: our terminal has gone
            data = b""
        self.reads = bool(data)
        self._pending = self.typed.take(data) if data else self.typed.rest()

    def _feed(self) -> None:
        try:
            self._pending = self._pending[os.write(self._input, self._pending) :]
        except BlockingIOError:
            return
        except OSError:  # it reads no more, or has ended
            self._pending, self.reads = b"", False
