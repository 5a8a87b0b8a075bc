"""Whether a container's program is well: its HEALTHCHECK, run again and again by its keeper, by Docker's rules.

Theory of operation
-------------------
Each run of the program has a thread that waits for the run's end, or for the time of the next check, and then runs the check in the container, with a
time limit and at most CHECK_OUTPUT bytes of output. Exit code 0 is healthy at once; so many failures in a row as there are *retries* are unhealthy,
and those that come within the *start_period*, before the first success, do not count. The last outcomes are part of the container's state.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from attrs import define, field, frozen

from sandbox import Container, ImageError, Result, Status, UnsupportedError, UsageError
from sandbox.image import Healthcheck, Settings

EVERY_S: Final = 30.0  # Docker's defaults: between two checks, for one, and in the start period
START_EVERY_S: Final = 5.0
RETRIES: Final = 3
OUTCOMES: Final = 5
CHECK_OUTPUT: Final = 4096
LEAST_S: Final = 0.001
_SHELL: Final = ("/bin/sh", "-c")
_NO_CODE: Final = -1  # of a check that did not end, or did not begin
_LONGEST_MS: Final = (1 << 31) - 1  # of poll(2): 24 days
Tell = Callable[[object, Mapping[str, Any], float], bool]


@frozen
class Check:
    """What is run, and when; all is said."""

    argv: tuple[str, ...]
    test: tuple[str, ...]
    interval: float
    timeout: float
    start_period: float
    retries: int
    start_interval: float = START_EVERY_S

    def document(self) -> dict[str, Any]:
        """As ``docker inspect`` shows it: nanoseconds."""
        times = {"Interval": self.interval, "Timeout": self.timeout, "StartPeriod": self.start_period, "StartInterval": self.start_interval}
        return {"Test": list(self.test), **{name: int(seconds * 1e9) for name, seconds in times.items()}, "Retries": self.retries}


def to_check(wanted: Healthcheck | None, settings: Settings | None) -> Check | None:
    """What *wanted* and the image say together, the first before the second; None: nothing is checked.

    Raises: UsageError: values that make no sense, or times for no check; ImageError: the image's check is none.
    """
    image = (settings.healthcheck if settings is not None else None) or Healthcheck(())
    said = wanted or Healthcheck(())
    test = said.test or image.test
    if test[:1] == ("NONE",):
        return None
    if not test:
        if wanted is not None and wanted != Healthcheck(()):
            raise UsageError("health: times for a check, and nothing to check with: the image has no HEALTHCHECK; give --health-cmd")
        return None
    kind, *rest = test
    if kind not in ("CMD", "CMD-SHELL") or not rest or not all(rest):
        kind_of = UsageError if said.test else ImageError
        raise kind_of(f"health: {test!r:.200} is neither CMD nor CMD-SHELL with something to run")
    shell = (settings.shell if settings is not None else None) or _SHELL
    interval = _seconds("interval", said.interval, image.interval, EVERY_S)
    return Check(
        argv=tuple(rest) if kind == "CMD" else (*shell, rest[0]),
        test=test,
        interval=interval,
        timeout=_seconds("timeout", said.timeout, image.timeout, EVERY_S),
        start_period=_seconds("start period", said.start_period, image.start_period, 0.0),
        retries=_count(said.retries, image.retries),
        start_interval=_seconds("start interval", said.start_interval, image.start_interval, min(interval, START_EVERY_S)),
    )


def _seconds(what: str, *said: float | None) -> float:
    value = next((each for each in said if each), 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (value and not LEAST_S <= value < 1e9):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"health {what}: {value!r} is no time; 1 ms is the least")
    return float(value)


def _count(*said: int | None) -> int:
    value = next((each for each in said if each), RETRIES)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"health retries: {value!r} is no number of them")
    return value


@define
class Health:
    """What is known: Docker's rules, without clock and container."""

    check: Check
    status: str = "starting"
    streak: int = 0
    log: list[dict[str, Any]] = field(factory=list[dict[str, Any]])

    def begin(self) -> None:
        """A new run of the program; outcomes of the last one are still shown."""
        self.status, self.streak = "starting", 0

    def add(self, outcome: Mapping[str, Any], *, since_start: float) -> None:
        """Take one outcome in."""
        self.log = [*self.log, dict(outcome)][-OUTCOMES:]
        if outcome["ExitCode"] == 0:
            self.status, self.streak = "healthy", 0
        elif self.status != "starting" or since_start >= self.check.start_period:
            self.streak += 1
            if self.streak >= self.check.retries:
                self.status = "unhealthy"

    def pause(self, *, since_start: float) -> float:
        """Seconds until the next check."""
        is_early = self.status == "starting" and since_start < self.check.start_period
        return self.check.start_interval if is_early else self.check.interval

    def document(self) -> dict[str, Any]:
        """As ``docker inspect`` shows it."""
        return {"Status": self.status, "FailingStreak": self.streak, "Log": self.log}


def look(container: Container, check: Check) -> dict[str, Any]:
    """Run the check once; its outcome, by Docker's names."""
    began = time.time()
    code, said = _NO_CODE, ""
    try:
        result = _run(container, check)
        code, said = _said(result, check)
    except Exception as error:  # noqa: BLE001 - whatever it is (no room, no thread): nobody else would tell, and the next check may be better
        said = str(error) or type(error).__name__
    return {"Start": _when(began), "End": _when(time.time()), "ExitCode": code, "Output": said[:CHECK_OUTPUT]}


def _run(container: Container, check: Check) -> Result:
    words: dict[str, Any] = {"timeout": check.timeout, "output_limit": CHECK_OUTPUT, "on_overflow": "discard"}
    try:
        return container.exec(check.argv, **words)
    except UnsupportedError:
        return container.exec(check.argv, accounting=False, **words)


def _said(result: Result, check: Check) -> tuple[int, str]:
    if result.status is Status.TIMEOUT:
        return _NO_CODE, f"Health check exceeded timeout ({check.timeout:g}s)"
    said = (bytes(result.stdout or b"") + bytes(result.stderr or b"")).decode(errors="replace")
    return result.returncode if result.returncode >= 0 else 128 - result.returncode, said


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def watch(container: Container, health: Health, ended: int, turn: Callable[[], object], tell: Tell) -> None:
    """Check in a thread of its own until *ended*, a descriptor that is ours from now on, hangs up, or *tell* says that this run has gone.

    *turn*: None while the program stands still, and nothing is to be checked; *tell* gets what it said before the check.
    Raises: RuntimeError: no thread is to be had.
    """

    def work() -> None:
        began = time.monotonic()
        try:
            while not _hangs_up(ended, health.pause(since_start=time.monotonic() - began)):
                now = turn()
                if now is None:
                    continue
                outcome = look(container, health.check)
                if _hangs_up(ended, 0) or not tell(now, outcome, time.monotonic() - began):
                    return
        finally:
            os.close(ended)

    try:
        threading.Thread(target=work, daemon=True).start()
    except BaseException:
        os.close(ended)
        raise


def _hangs_up(ended: int, timeout: float) -> bool:
    poll = select.poll()  # a descriptor may have any number
    poll.register(ended, select.POLLIN)
    return bool(poll.poll(min(timeout * 1000, _LONGEST_MS)))
