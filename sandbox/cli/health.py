"""The options of ``sandbox run`` about health checks, by Docker's names."""

from __future__ import annotations

import re
from argparse import Namespace
from typing import TYPE_CHECKING, Any, Final

from sandbox import UsageError

if TYPE_CHECKING:
    from sandbox.cli.parser import Parser
    from sandbox.image import Healthcheck

_OPTIONS: Final = ("health_cmd", "health_interval", "health_timeout", "health_start_period", "health_start_interval", "health_retries")
_TIME: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+|0", re.ASCII)
_PIECE: Final = re.compile(r"([\d.]+)([a-zµ]+)")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def add(parser: Parser) -> None:
    """Add them."""
    group = parser.add_argument_group("health, with --detach")
    group.add_argument(
        "--health-cmd", metavar="COMMAND", help="what a shell runs in it to see whether it is well, instead of the image's HEALTHCHECK"
    )
    group.add_argument("--health-interval", metavar="TIME", help="between two checks (30s); times are such as 1m30s")
    group.add_argument("--health-timeout", metavar="TIME", help="for one check (30s)")
    group.add_argument("--health-start-period", metavar="TIME", help="in which failures do not count yet (0s)")
    group.add_argument("--health-start-interval", metavar="TIME", help="between two checks in the start period (5s, or --health-interval)")
    group.add_argument("--health-retries", metavar="N", help="failures in a row that mean unhealthy (3)")
    group.add_argument("--no-healthcheck", action="store_true", help="none, whatever the image says")


def are_given(parsed: Namespace) -> bool:
    """Whether any was."""
    return parsed.no_healthcheck or any(getattr(parsed, name) is not None for name in _OPTIONS)


def wanted(parsed: Namespace) -> Healthcheck | None:
    """What they say; None: nothing. Raises: UsageError."""
    if not are_given(parsed):
        return None
    from sandbox.image import Healthcheck

    given = [name for name in _OPTIONS if getattr(parsed, name) is not None]
    if parsed.no_healthcheck:
        if given:
            raise UsageError("--no-healthcheck conflicts with --health-* options")
        return Healthcheck(("NONE",))
    names = ("interval", "timeout", "start_period", "start_interval")
    times: dict[str, Any] = {name: _time(name, getattr(parsed, f"health_{name}")) for name in names}
    return Healthcheck(("CMD-SHELL", parsed.health_cmd) if parsed.health_cmd else (), retries=_retries(parsed.health_retries), **times)


def to_duration(text: str) -> float | None:
    """Seconds of ``1m30s``, as Docker writes them; None: it is none."""
    if not _TIME.fullmatch(text) or len(text) > 40:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PIECE.findall(text))


def _time(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    option = f"--health-{name.replace('_', '-')}"
    seconds = to_duration(text)
    if seconds is None:
        raise UsageError(f"{option}: {text!r} is not a time; write it as 30s, 1m30s or 500ms")
    if 0 < seconds < 0.001:
        raise UsageError(f"{option}: {text!r} is too short; 1ms is the least")
    return seconds or None


def _retries(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"--health-retries: {text!r} is no number of them")
    return int(text) or None
