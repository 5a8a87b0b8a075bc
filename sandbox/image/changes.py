"""Changes to what an image says of its containers, in a Dockerfile's words: what ``commit --change`` and ``import --change`` take."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import signal
from collections.abc import Callable, Iterable
from typing import Final, cast

from attrs import evolve

from sandbox.errors import UsageError
from sandbox.image.documents import Settings

__all__ = ["apply_changes"]

_SHELL: Final = ("/bin/sh", "-c")
_PORT: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII)
_SIGNAL: Final = re.compile(r"(?:SIG)?(?:(?P<name>[A-Z][A-Z0-9]{1,9})|RT(?:MIN\+|MAX-)(?P<real_time>[0-9]{1,2}))|(?P<number>[0-9]{1,2})", re.ASCII)
_SIGNALS: Final = frozenset(name.removeprefix("SIG") for name in signal.Signals.__members__)
_REAL_TIME: Final = int(signal.SIGRTMAX) - int(signal.SIGRTMIN)


def apply_changes(settings: Settings, changes: Iterable[str]) -> Settings:
    """*settings* after ``CMD ["nginx"]``, ``ENV A=1 B=2``, ``WORKDIR /app`` ...; variables are not expanded, there is nothing to expand them from.

    There are CMD, ENTRYPOINT (which takes an older CMD away), ENV, EXPOSE, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME and WORKDIR.
    Raises: UsageError: one is none of these, or makes no sense.
    """
    if isinstance(changes, str):
        raise UsageError(f"changes: give a list, [{changes!r}]")
    lines = list(changes)
    keeps_cmd = False
    for line in lines:
        word, rest = _split(line)
        settings = _TABLE[word](settings, rest)
        keeps_cmd |= word == "CMD"
        if word == "ENTRYPOINT" and not keeps_cmd:
            settings = evolve(settings, cmd=None)
    return settings


def _split(line: object) -> tuple[str, str]:
    if not isinstance(line, str) or "\0" in line or "\n" in line:
        raise UsageError(f"changes: {line!r} is not one line of text")
    word, _, rest = line.strip().partition(" ")
    if word.upper() not in _TABLE:
        raise UsageError(f"changes: {line!r}: {word!r} is not one of {', '.join(_TABLE)}")
    if not rest.strip():
        raise UsageError(f"changes: {line!r} lacks what it is to be")
    return word.upper(), rest.strip()


def _json(text: str) -> tuple[str, ...] | None:
    """A list of texts; None for anything else, which is a line for the shell, as in Docker."""
    try:
        found = json.loads(text) if text.startswith("[") else None
    except ValueError:
        return None
    words = cast("list[object]", found) if isinstance(found, list) else [None]
    return tuple(word for word in words if isinstance(word, str)) if all(isinstance(word, str) for word in words) else None


def _command(settings: Settings, text: str) -> tuple[str, ...]:
    words = _json(text)
    return (*(settings.shell or _SHELL), text) if words is None else words


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"changes: {text!r}: {error}") from None


def _pairs(text: str, word: str) -> dict[str, str]:
    """``A=1 B="two words"``, or the old form ``A all the rest``."""
    first = text.split(maxsplit=1)
    if "=" not in first[0]:
        if len(first) == 1:
            raise UsageError(f"changes: {word} {text!r} is not NAME=VALUE")
        return {first[0]: first[1]}
    pairs: dict[str, str] = {}
    for item in _words(text):
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UsageError(f"changes: {word}: {item!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs


def _env(settings: Settings, text: str) -> Settings:
    known = {line.partition("=")[0]: line.partition("=")[2] for line in settings.env}
    return evolve(settings, env=tuple(f"{name}={value}" for name, value in {**known, **_pairs(text, "ENV")}.items()))


def _label(settings: Settings, text: str) -> Settings:
    return evolve(settings, labels=tuple({**dict(settings.labels), **_pairs(text, "LABEL")}.items()))


def _expose(settings: Settings, text: str) -> Settings:
    ports: list[str] = []
    for item in text.split():
        match = _PORT.fullmatch(item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not 0 < first <= last <= 65535 or last - first > 1000:
            raise UsageError(f"changes: EXPOSE {item!r} is not PORT, PORT/udp or FIRST-LAST")
        ports += [f"{port}/{match[3] or 'tcp'}" for port in range(first, last + 1)]
    return evolve(settings, exposed_ports=tuple(dict.fromkeys((*settings.exposed_ports, *ports))))


def _volume(settings: Settings, text: str) -> Settings:
    paths = _json(text) or tuple(_words(text))
    if not all(path.startswith("/") for path in paths):
        raise UsageError(f"changes: VOLUME {text!r}: paths are absolute")
    return evolve(settings, volumes=tuple(dict.fromkeys((*settings.volumes, *paths))))


def _workdir(settings: Settings, text: str) -> Settings:
    (path,) = _words(text) if len(_words(text)) == 1 else (text,)
    return evolve(settings, working_dir=posixpath.normpath(posixpath.join(settings.working_dir or "/", path)))


def _stop_signal(settings: Settings, text: str) -> Settings:
    match = _SIGNAL.fullmatch(text)
    name, real_time, number = match.group("name", "real_time", "number") if match else (None, None, None)
    if not (name in _SIGNALS or (real_time and int(real_time) <= _REAL_TIME) or (number and 1 <= int(number) <= 64)):
        raise UsageError(f"changes: STOPSIGNAL {text!r} is not a signal, such as SIGTERM")
    return evolve(settings, stop_signal=text)


def _shell(settings: Settings, text: str) -> Settings:
    words = _json(text)
    if not words:
        raise UsageError(f'changes: SHELL {text!r} is not a list, such as ["/bin/bash", "-c"]')
    return evolve(settings, shell=words)


def _on_build(settings: Settings, text: str) -> Settings:
    if text.split(maxsplit=1)[0].upper() in ("ONBUILD", "FROM"):
        raise UsageError(f"changes: ONBUILD {text!r}: neither ONBUILD nor FROM can come later")
    return evolve(settings, on_build=(*settings.on_build, text))


_TABLE: Final[dict[str, Callable[[Settings, str], Settings]]] = {
    "CMD": lambda settings, text: evolve(settings, cmd=_command(settings, text)),
    "ENTRYPOINT": lambda settings, text: evolve(settings, entrypoint=_command(settings, text)),
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": lambda settings, text: evolve(settings, user=text),
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
