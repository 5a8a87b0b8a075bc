"""``sandbox run``: one program in a container of its own, with the caller's own standard streams.

The program gets the caller's descriptors themselves: nothing is copied, unless ``--output-limit`` or ``--tty`` asks for
something in between (`relay`, `terminal`). Signals that would end this command are sent on to the program, whose end then
is this command's too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from types import FrameType
from typing import Any, Final, Protocol, Self, TypeVar

from attrs import define, field

from sandbox import (
    DEVNULL,
    PIPE,
    Container,
    ImageNotFoundError,
    PortInUseError,
    Process,
    ProgramNotFoundError,
    Result,
    SandboxError,
    SetupError,
    UnsupportedError,
    UsageError,
)
from sandbox.cli import networks, options, sharing
from sandbox.cli.groups import with_groups
from sandbox.cli.outcome import complain, one_line
from sandbox.cli.report import Report

OWN_FAILURE: Final = 125  # docker run's: the failure is ours, not the program's
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
WRONG_USE: Final = 2
FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_TYPED: Final = (signal.SIGINT, signal.SIGQUIT)  # a terminal sends them to all processes of a group, and not to one
_ENOEXEC, _EACCES = 8, 13


def main(arguments: Sequence[str]) -> int:
    """Run what the command line says; return the exit code."""
    from sandbox.cli.arguments import parse
    from sandbox.cli.parser import WrongUseError

    try:
        parsed = parse(arguments)
        if parsed.detach and not parsed.explain:
            return _detach(parsed)
        request = options.to_request(parsed, os.environ)
    except WrongUseError as error:
        return _complain(error, WRONG_USE, hint=" (see sandbox run --help)")
    except SandboxError as error:
        return _complain(error, code_of_error(error))
    except SystemExit:  # --help
        return 0
    try:
        return _explain(request) if request.explain else _run(request)
    except PortInUseError as error:
        from sandbox.keep import with_owner

        return _complain(with_owner(error), code_of_error(error))
    except SandboxError as error:
        return _complain(error, code_of_error(error))


def _detach(parsed: argparse.Namespace) -> int:
    from sandbox.cli import detached

    for line in detached.run(parsed, os.environ):
        _warn(line)
    return 0


def code_of_error(error: SandboxError) -> int:
    """126 and 127 for a program that cannot be started, 125 for everything else, as docker run."""
    if isinstance(error, ProgramNotFoundError):
        return NOT_EXECUTABLE if error.errno == _EACCES else NOT_FOUND
    if isinstance(error, SetupError) and error.step == "exec" and error.errno == _ENOEXEC:
        return NOT_EXECUTABLE
    return OWN_FAILURE


def _complain(error: SandboxError, code: int, *, hint: str = "") -> int:
    complain("sandbox run", f"{error}{hint}")
    return code


def _explain(request: options.Request) -> int:
    container = Container(**request.container)
    print(container.explain())
    print("".join(f"{line}\n" for line in [*networks.explained(request.container), *sharing.explained(request.container)]), end="")
    for name, value in request.program_options.items():
        if value is not None:
            print(f"limit {name} = {value:g} s")
    if request.program or request.image is not None:
        print(f"run {program_of(container, request)!r}")
    return 0


def _run(request: options.Request) -> int:
    with Report.to(request.report) as report, Forwarding() as forwarding:
        try:
            result = with_groups(lambda: _in_container(request, forwarding, accounting=report.is_wanted))
        except SandboxError as error:
            report.failed(error, code_of_error(error))
            raise
        report.ended(result, result.shell_code)
        return result.shell_code


def _in_container(request: options.Request, forwarding: Forwarding, *, accounting: bool) -> Result:
    with contextlib.ExitStack() as stack:
        for network in networks.new_networks(request.container):
            stack.enter_context(network)
        container = stack.enter_context(_made(request))
        for line in () if request.container["strict"] else container.degraded:
            _warn(line)
        for line in networks.chosen_ports(request.container, container.ports):
            print(f"sandbox run: {line}", file=sys.stderr, flush=True)  # before the program runs: whoever reads on can connect then
        return _program(container, request, forwarding, accounting=accounting)


def _made(request: options.Request) -> Container:
    """The container; its image is pulled before, if that was asked for and it is not there, or always."""
    if request.image is None or request.pull == "never":
        return Container(**request.container)
    if request.pull == "missing":
        with contextlib.suppress(ImageNotFoundError):
            return Container(**request.container)
    from sandbox.image import pull

    options_of_it: dict[str, Any] = {**request.container, "image": pull(request.image)}
    return Container(**options_of_it)


def program_of(container: Container, request: options.Request) -> tuple[Any, ...]:
    """What is run: of an image, what it says, or what the command line says in its place."""
    if request.image is None:
        return request.program
    if request.entrypoint is not None:
        words = (request.entrypoint, *request.program) if request.entrypoint else request.program
        if not words:
            raise UsageError("--entrypoint '': then nothing is left to run; give a program")
        return words
    return tuple(container.command(request.program or None))


def _program(container: Container, request: options.Request, forwarding: Forwarding, *, accounting: bool) -> Result:
    if request.tty:
        from sandbox.cli.terminal import Terminal

        with (
            Terminal(interactive=request.interactive) as terminal,
            _started(container, request, accounting, tty=True, size=terminal.size) as process,
            forwarding.to(process, terminal.resize),
        ):
            terminal.relay(process)
            return process.wait()
    stdin = 0 if request.interactive else DEVNULL
    if request.output_limit is None:
        with _started(container, request, accounting, stdin=stdin, stdout=1, stderr=2) as process, forwarding.to(process):
            return process.wait()
    from sandbox.cli.relay import relay_limited

    with _started(container, request, accounting, stdin=stdin, stdout=PIPE, stderr=PIPE) as process, forwarding.to(process):
        return relay_limited(process, request.output_limit)


def _started(container: Container, request: options.Request, accounting: bool, **streams: Any) -> Process:  # noqa: ANN401 - popen's own
    """Start the program; for a report with a control group of its own, where one can be had."""
    arguments, argv = {**request.program_options, **streams}, program_of(container, request)
    with contextlib.suppress(UnsupportedError):
        if accounting:
            return container.popen(argv, accounting=True, **arguments)
    try:
        return container.popen(argv, **arguments)
    except UnsupportedError as error:
        if request.container["strict"]:
            raise
        _warn(f"without a control group, for {error}")
        return container.popen(argv, accounting=False, **arguments)


def _warn(text: str) -> None:
    print(f"sandbox run: warning: {one_line(text)}", file=sys.stderr)


class Signalled(Protocol):
    """Something that takes signals: a `Process`, or a program in another process's container."""

    def send_signal(self, signal: int) -> None:
        """Send one."""
        ...


S = TypeVar("S", bound=Signalled)


@define(eq=False)
class Forwarding:
    """Sends signals on to the program, from before its start to after its end: what comes too early is kept for it."""

    _process: Signalled | None = None
    _early: list[int] = field(factory=list[int])
    _old: dict[int, Any] = field(factory=dict[int, Any])

    def __enter__(self) -> Self:
        for number in FORWARDED:
            # A signal that our parent chose to ignore (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._process is None:
            self._early.append(number)
        else:
            self._send(self._process, number)

    @staticmethod
    def _send(process: Signalled, number: int) -> None:
        with contextlib.suppress(SandboxError, OSError):  # it has just ended: its result says so
            if isinstance(process, Process):
                process.send_signal(number, to_all=number in _TYPED)
            else:
                process.send_signal(number)

    @contextlib.contextmanager
    def to(self, process: S, resize: Callable[[S], None] | None = None) -> Generator[None]:
        """Forward to *process* within the block; with *resize*, call that when our terminal has another size."""
        old = None if resize is None else signal.signal(signal.SIGWINCH, lambda _number, _frame: resize(process))
        self._process = process
        while self._early:
            self._send(process, self._early.pop(0))
        try:
            yield
        finally:
            self._process = None
            if resize is not None:
                signal.signal(signal.SIGWINCH, old)
