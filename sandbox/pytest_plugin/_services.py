"""`ServiceContainer`: what the fixtures give; a `Container` with services in it, whose output is there when a test fails."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Self, overload

from sandbox import PIPE, STDOUT, CommandError, Container, Process, Result, SandboxError, UsageError
from sandbox.pytest_plugin import _reach
from sandbox.pytest_plugin._output import Log, printable
from sandbox.pytest_plugin._waiting import make_condition, wait

if TYPE_CHECKING:
    from sandbox import Endpoint, Join, Network

__all__ = ["Service", "ServiceContainer", "ServiceError"]

READY_S: Final = 30.0
_STOP_S: Final = 10.0
_JOIN_S: Final = 5.0
_MAX_RUNS: Final = 50  # programs of one container that are remembered
_MAX_RUN: Final = 4096  # characters of each


class ServiceError(SandboxError):
    """A service did not become ready, or has ended; `output` is the last that the container's services wrote, and the message ends with it."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(f"{message}\n{output}" if output else f"{message}; it wrote nothing")
        self.output = output

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (str(self), self.output)


def _rebuild(message: str, output: str) -> ServiceError:
    error = ServiceError.__new__(ServiceError)
    Exception.__init__(error, message)
    error.output = output
    return error


class Service:
    """A program that runs beside the test until the container is closed, or `stop`. Made by `ServiceContainer.serve`.

    `process` is its `Process`, `name` what reports call it. Standard output and error come together, as `output`.
    """

    def __init__(self, container: ServiceContainer, process: Process, name: str) -> None:
        self._container = container
        self.process = process
        self.name = name
        self._seen = 0  # bytes of the log that were there when the current test began
        stdout = process.stdout
        if stdout is None:
            raise AssertionError("started with a pipe")
        self.log = Log(os.dup(stdout.fileno()), name)

    def __repr__(self) -> str:
        return f"<Service: {self.fate}>"

    def fileno(self) -> int:
        """Becomes readable when it has ended."""
        return self.process.fileno()

    @property
    def is_running(self) -> bool:
        """Whether its first process lives. A program that puts itself into the background ends with that: keep it in the foreground."""
        return self.process.poll() is None

    @property
    def output(self) -> str:
        """The last 256 KiB that it wrote, as text. What it writes beyond is counted and forgotten."""
        return self.log.read().decode("utf-8", "replace")

    @property
    def fate(self) -> str:
        """What became of it, in words."""
        result = self.process.result
        return f"{self.name} runs" if result is None else f"{self.name} {_fate(result)}"

    def wait_for(
        self,
        *,
        port: int | None = None,
        log: str | re.Pattern[str] | None = None,
        command: Sequence[str] | None = None,
        http: str | None = None,
        timeout: float = READY_S,
    ) -> Self:
        """Wait until it is ready; as `ServiceContainer.wait_for`, but *log* and an early end are this service's alone."""
        __tracebackhide__ = True
        self._container.await_ready((self,), timeout, port=port, log=log, command=command, http=http)
        return self

    def connect(self, port: int, *, host: str = "127.0.0.1", timeout: float = READY_S) -> socket.socket:
        """As `ServiceContainer.connect`."""
        return self._container.connect(port, host=host, timeout=timeout)

    def stop(self, *, timeout: float = _STOP_S) -> Result:
        """Send SIGTERM, after *timeout* seconds SIGKILL, and wait for its end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except TimeoutError:
            self.process.kill()
            return self.process.wait(_STOP_S)

    def close(self) -> None:
        """Kill it if it runs."""
        self.process.close()
        self.log.join(_JOIN_S)

    def begin(self) -> None:
        """A test begins: what the service wrote before is not of its making."""
        self._seen = self.log.total

    def story(self) -> str:
        """What a report says of it; "" when the current test got nothing from it."""
        if self.process.result is not None:
            self.log.join(_JOIN_S)
        said = printable(self.log.read(self._seen))
        return f"$ {self.name}: service, {self.fate.removeprefix(self.name).strip()}\n{said}" if said or self._seen == 0 else ""


class ServiceContainer(Container):
    """A `Container` of a test: `serve` starts services, `wait_for` waits until they are ready, `connect` reaches them.

    What its programs wrote is kept, within bounds, and reported when the test fails.
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Container's own
        super().__init__(*args, **options)
        self._services: list[Service] = []
        self._runs: deque[str] = deque(maxlen=_MAX_RUNS)
        self._sockets: dict[socket.AddressFamily, list[socket.socket]] = {}

    if not TYPE_CHECKING:  # their many arguments are said once, in Container

        def exec(self, argv, **options):  # noqa: ANN001, ANN003, ANN202
            try:
                result = super().exec(argv, **options)
            except CommandError as error:
                self._note(error.result)
                raise
            self._note(result)
            return result

        def popen(self, argv, **options):  # noqa: ANN001, ANN003, ANN202
            process = super().popen(argv, **options)
            self._runs.append(f"$ {_words(argv)}: started\n")
            return process

    def _note(self, result: Result) -> None:
        said = "".join(printable(_encoded(stream), keep=_MAX_RUN) for stream in (result.stdout, result.stderr) if stream)
        self._runs.append(f"$ {_words(result.argv)}: {_fate(result)}\n{said}")

    def serve(self, argv: Sequence[str], *, name: str | None = None, **options: Any) -> Service:  # noqa: ANN401 - those of Container.popen
        """Start a service: a program that stays in the foreground. It ends with the container, or by `Service.stop`.

        name: what reports call it (None: the program's own). options: those of `Container.popen`, but for the output, which is
        collected: read by a thread, the last 256 KiB kept.
        """
        if taken := options.keys() & {"stdout", "stderr", "tty", "text", "encoding", "errors"}:
            raise UsageError(f"serve: {min(taken)!r}: the output of a service is collected; use popen() to read it yourself")
        process = super().popen(argv, stdout=PIPE, stderr=STDOUT, **options)
        try:
            service = Service(self, process, name or os.path.basename(process.args[0]))
        except BaseException:
            process.close()
            raise
        self._services.append(service)
        return service

    @property
    def services(self) -> Sequence[Service]:
        """The services that were started here, also those that have ended."""
        return tuple(self._services)

    def wait_for(
        self,
        *,
        port: int | None = None,
        log: str | re.Pattern[str] | None = None,
        command: Sequence[str] | None = None,
        http: str | None = None,
        timeout: float = READY_S,
    ) -> Self:
        """Wait until one thing holds, *timeout* seconds at most.

        port: a TCP socket listens on it, in the container's network namespace; seen from outside, without a connection.
        log: this text, or a match of this pattern, is in a line that a service wrote, also before the call.
        command: this program, run inside, ends with exit code 0. http: this URL of ``localhost`` answers with a status below 400.

        Raises: ServiceError, with the services' output, after *timeout*, or as soon as a service has ended; UsageError.
        """
        __tracebackhide__ = True
        self.await_ready(self.services, timeout, port=port, log=log, command=command, http=http)
        return self

    def await_ready(self, services: Sequence[Service], timeout: float, **wanted: Any) -> None:  # noqa: ANN401 - as `wait_for`
        """Wait, in the company of these *services* only: `wait_for` and `Service.wait_for`."""
        __tracebackhide__ = True
        condition = make_condition(self, services, **wanted)
        try:
            wait(condition, services, timeout=timeout, fail=self._failure)
        finally:
            condition.close()

    def _failure(self, message: str) -> ServiceError:
        return ServiceError(message, "\n".join(f"--- output of {each.name} ---\n{printable(each.log.read())}" for each in self._services))

    def try_out(self, argv: Sequence[str], *, timeout: float) -> Result:
        """Run a program that is no part of the test's story: many of them, while something is waited for."""
        return super().exec(argv, timeout=timeout, output_limit="64K")

    @overload
    def connect(self, port: Network | Join | str, /) -> Endpoint: ...
    @overload
    def connect(self, port: int, *, host: str = ..., timeout: float = ...) -> socket.socket: ...
    def connect(self, port: int | Network | Join | str, *, host: str = "127.0.0.1", timeout: float = READY_S) -> socket.socket | Endpoint:
        """Connect to a TCP port inside; *host* is its loopback, ``127.0.0.1`` or ``::1``. The socket is the caller's, to be closed.

        With a `Network` or a `Join`, as `Container.connect`: put it into that.

        Raises: OSError: ConnectionRefusedError, TimeoutError ...; UnsupportedError: an ordinary user's container without python3.
        """
        if not isinstance(port, int):
            return super().connect(port)
        family = _reach.loopback_of(host)
        _reach.to_port(port)
        ready = self._sockets.setdefault(family, [])
        if not ready:
            ready.extend(_reach.make_sockets(self, family))
        sock = ready.pop()
        try:
            _reach.connect(sock, host, port, timeout)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(super().close)
            for service in self._services:
                stack.callback(service.close)
            for sock in (each for ready in self._sockets.values() for each in ready):
                stack.callback(sock.close)
            self._sockets.clear()

    def begin(self) -> None:
        """A test begins: what was before is not of its making."""
        self._runs.clear()
        for service in self._services:
            service.begin()

    def story(self) -> str:
        """What a report says of the current test's programs; "" when there were none."""
        return "\n".join(filter(None, (*(service.story().rstrip() for service in self._services), *(run.rstrip() for run in self._runs))))


def _words(argv: Sequence[str | bytes | os.PathLike[str]]) -> str:
    return printable(shlex.join(os.fsdecode(word) for word in argv), keep=200)


def _encoded(stream: str | bytes) -> bytes:
    return stream.encode("utf-8", "surrogateescape") if isinstance(stream, str) else stream


def _fate(result: Result) -> str:
    """How a program ended, in words."""
    if result.status.name == "EXITED":
        return f"ended with exit code {result.exit_code}"
    if result.status.name == "SIGNALED" and result.signal is not None:
        return f"was ended by signal {result.signal}"
    return f"was ended: {result.status.name}"
