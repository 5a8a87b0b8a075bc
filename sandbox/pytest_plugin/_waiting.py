"""Waiting until a service is ready: for a port, a line of its log, a command that succeeds, or an HTTP answer."""

from __future__ import annotations

import contextlib
import re
import select
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from sandbox import BrokenError, UsageError
from sandbox.pytest_plugin import _reach
from sandbox.pytest_plugin._output import Watch, printable

if TYPE_CHECKING:
    from sandbox.pytest_plugin._services import Service, ServiceContainer

__all__ = ["Condition", "make_condition", "wait"]

_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.05
_MAX_STATUS_LINE: Final = 1024
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})\b")


class Waker(Protocol):
    """Something that poll(2) waits for."""

    def fileno(self) -> int: ...


class Condition(Protocol):
    """What is waited for. `words` describes it, `detail` says how the last attempt went."""

    words: str
    detail: str

    def is_met(self, left_s: float) -> bool:
        """Look; takes *left_s* seconds at most."""
        ...

    def watches(self) -> Sequence[Watch]:
        """What wakes the waiting caller; without any, it looks again and again."""
        ...

    def close(self) -> None: ...


class _Polled:
    """A condition that can only be looked at."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.detail = ""

    def watches(self) -> Sequence[Watch]:
        return ()

    def close(self) -> None:
        """Nothing is held."""


class PortCondition(_Polled):
    """Somebody inside listens on a TCP port."""

    def __init__(self, container: ServiceContainer, port: int) -> None:
        super().__init__(f"port {port}")
        self._container, self._port = container, port

    def is_met(self, left_s: float) -> bool:
        del left_s
        return listens(self._container, self._port)


def listens(container: ServiceContainer, port: int) -> bool:
    """Whether somebody listens inside. Raises: BrokenError: the container has ended, and its pid may be another process's."""
    found = _reach.is_listening(container.pid, port)
    if not container.is_running:
        raise BrokenError("the container ended while a service in it was waited for")
    return found


class CommandCondition(_Polled):
    """A command inside ends with exit code 0."""

    def __init__(self, container: ServiceContainer, command: Sequence[str]) -> None:
        super().__init__(f"command {' '.join(map(str, command))!r}")
        self._container, self._command = container, command

    def is_met(self, left_s: float) -> bool:
        result = self._container.try_out(self._command, timeout=max(left_s, 0.1))
        said = printable(result.stdout + result.stderr, keep=1000).strip()
        self.detail = f"it {result.status.value} with exit code {result.exit_code}{f': {said}' if said else ''}"
        return result.ok


class HttpCondition(_Polled):
    """A web server inside answers with a status below 400."""

    def __init__(self, container: ServiceContainer, url: str) -> None:
        super().__init__(f"http {url}")
        self._container = container
        self._host, self._port, self._target = _to_address(url)

    def is_met(self, left_s: float) -> bool:
        if not listens(self._container, self._port):
            self.detail = f"nobody listens on port {self._port}"
            return False
        try:
            status = self._ask(time.monotonic() + max(left_s, 0.1))
        except TimeoutError as error:  # the last attempt, cut short: what an earlier one was told says more
            self.detail = self.detail or str(error)
            return False
        except OSError as error:
            self.detail = str(error)
            return False
        self.detail = "no HTTP answer" if status is None else f"status {status}"
        return status is not None and status < 400

    def _ask(self, deadline: float) -> int | None:
        """The status of one answer; only its first line is read, for what comes from inside may never end."""
        with self._container.connect(self._port, host=self._host, timeout=max(0.01, deadline - time.monotonic())) as sock:
            sock.sendall(f"GET {self._target} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n\r\n".encode("ascii"))
            line = b""
            while b"\n" not in line and len(line) < _MAX_STATUS_LINE:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError("no answer in time")
                sock.settimeout(left_s)
                data = sock.recv(_MAX_STATUS_LINE - len(line))
                if not data:
                    break
                line += data
        found = _STATUS.match(line)
        return int(found[1]) if found else None


class LogCondition:
    """A line of one of the services' output matches."""

    def __init__(self, services: Sequence[Service], pattern: re.Pattern[str]) -> None:
        self.words = f"log line {pattern.pattern!r}"
        self.detail = ""
        self._held = contextlib.ExitStack()
        self._watches: list[Watch] = []
        for service in services:
            watch = Watch(pattern)
            self._held.callback(watch.close)
            service.log.watch(watch)
            self._held.callback(service.log.unwatch, watch)
            self._watches.append(watch)

    def is_met(self, left_s: float) -> bool:
        del left_s
        return any(watch.is_found for watch in self._watches)

    def watches(self) -> Sequence[Watch]:
        return self._watches

    def close(self) -> None:
        self._held.close()


def _to_address(url: object) -> tuple[str, int, str]:
    """Host, port and target of a URL of the container's own. Raises: UsageError."""
    if not isinstance(url, str) or not url.isascii() or any(char <= " " for char in url):
        raise UsageError(f"http: {url!r} is not a URL such as 'http://localhost:8080/health'")
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError as error:
        raise UsageError(f"http: {url!r}: {error}") from None
    if parts.scheme != "http":
        raise UsageError(f"http: {url!r}: only http:// is asked from here; use command= for others")
    host = parts.hostname or ""
    _reach.loopback_of(host)
    return host, port, f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"


def make_condition(container: ServiceContainer, services: Sequence[Service], **wanted: Any) -> Condition:  # noqa: ANN401 - as `wait_for`
    """The one condition that was asked for. Raises: UsageError: none, several, or one that makes no sense."""
    given = {name: value for name, value in wanted.items() if value is not None}
    if len(given) != 1:
        raise UsageError(f"wait_for: give one of {', '.join(f'{name}=' for name in wanted)}, not {' and '.join(given) or 'nothing'}")
    ((name, value),) = given.items()
    if name == "port":
        return PortCondition(container, _reach.to_port(value))
    if name == "http":
        return HttpCondition(container, value)
    if name == "command":
        return CommandCondition(container, _to_command(value))
    pattern = _to_pattern(value)
    if not services:
        raise UsageError("log: no service writes any; start it with serve()")
    return LogCondition(services, pattern)


def _to_command(value: Any) -> Sequence[str]:  # noqa: ANN401 - whatever the caller gave
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise UsageError(f"command: {value!r} is not a list; give ['redis-cli', 'ping'], say")
    return tuple(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # exec checks the words


def _to_pattern(value: Any) -> re.Pattern[str]:  # noqa: ANN401 - whatever the caller gave
    if isinstance(value, str):
        return re.compile(re.escape(value))
    if not isinstance(value, re.Pattern) or not isinstance(value.pattern, str):  # pyright: ignore[reportUnknownMemberType]
        raise UsageError(f"log: {value!r} is neither a str nor a pattern of re.compile for one")
    return value  # pyright: ignore[reportUnknownVariableType]


def wait(condition: Condition, services: Sequence[Service], *, timeout: float, fail: Callable[[str], Exception]) -> None:
    """Wait until *condition* is met. Raises: what *fail* makes of the words, when that takes too long or one of *services* has ended."""
    __tracebackhide__ = True
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise UsageError(f"timeout: {timeout!r} is not a number of seconds above 0")
    deadline = time.monotonic() + timeout
    pause_s = _FIRST_PAUSE_S
    while not condition.is_met(deadline - time.monotonic()):
        over = next((service for service in services if not service.is_running), None)
        if over is not None:
            over.log.join(1.0)
            if condition.is_met(0.0):
                return
            raise fail(f"{over.fate} before {condition.words} was there")
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise fail(f"{condition.words}: not there within {timeout:g} s{f' ({condition.detail})' if condition.detail else ''}")
        _pause(condition.watches(), services, left_s if condition.watches() else min(pause_s, left_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _pause(watches: Sequence[Watch], services: Sequence[Service], longest_s: float) -> None:
    """Wait until something may have changed: a line came, a service has ended, or *longest_s* are over."""
    poll = select.poll()
    wakers: Sequence[Waker] = (*watches, *services)
    for waker in wakers:
        poll.register(waker.fileno(), select.POLLIN)
    poll.poll(max(1, int(longest_s * 1000)))
