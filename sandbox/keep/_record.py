"""What is written down of a container that outlives its command: what it is (`Config`), and what has become of it (`State`). Pure.

Both are JSON objects. A reader trusts nothing: the shape is checked field by field, for a document may be damaged, or of another version.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from attrs import asdict, evolve, field, fields, frozen

from sandbox import UsageError
from sandbox.keep._restarts import to_policy

if TYPE_CHECKING:
    from sandbox import Result

VERSION: Final = 2
MAX_DOCUMENT: Final = 1 << 20
ID_DIGITS: Final = 64
SHORT_ID: Final = 12  # digits that are shown, as Docker does
NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", re.ASCII)  # Docker's rule, and the length of a host name
ID: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
STATUSES: Final = ("created", "running", "paused", "restarting", "exited", "dead")
T = TypeVar("T", bound="Config | State")


def to_name(name: object) -> str:
    """Check a container's name. Raises: UsageError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"name: {name!r} is no name of a container: a letter or digit, then up to 62 of letters, digits, '_', '.', '-'")
    return name


@frozen
class Config:
    """What a container is; but for *name* it never changes. *options*: what was asked of `Container`, for people to look at."""

    id: str
    name: str
    created: float
    image: str  # "" is a view of the host
    command: list[str]
    keeper: int
    labels: dict[str, str] = field(factory=dict[str, str])
    remove: bool = False
    tty: bool = False
    log_size: int = 0
    options: dict[str, Any] = field(factory=dict[str, Any])
    interactive: bool = False
    restart: str = "no"  # a policy (`_restarts`), as it is written

    def has_label(self, wanted: str) -> bool:
        """Whether it has the label ``NAME``, or ``NAME=TEXT``."""
        name, equals, text = wanted.partition("=")
        return name in self.labels and (not equals or self.labels[name] == text)


@frozen
class State:
    """What has become of it. Times are seconds since 1970; *init*: its pid on the host; *result*: of the last run that has ended (`result_of`)."""

    status: str = "created"
    init: int = 0
    started: float = 0.0
    finished: float = 0.0
    runs: int = 0
    error: str = ""
    result: dict[str, Any] | None = None
    networks: dict[str, Any] = field(factory=dict[str, Any])
    ports: dict[str, Any] = field(factory=dict[str, Any])
    restarts: int = 0  # since somebody started it
    health: dict[str, Any] | None = None  # by Docker's names; None: nothing is checked

    @property
    def is_up(self) -> bool:
        """Whether its program runs, or would if it were not paused, or will by itself."""
        return self.status in ("running", "paused", "restarting")


def encode(document: Config | State) -> bytes:
    """Write it down."""
    return json.dumps({"version": VERSION, **asdict(document)}).encode()


def decode_config(raw: bytes) -> Config:
    """Read a `Config`. Raises: ValueError."""
    found = _decode(raw, Config)
    if not ID.fullmatch(found.id) or not NAME.fullmatch(found.name):
        raise ValueError("neither the id nor the name of a container")
    to_policy(found.restart)
    return found


def decode_state(raw: bytes) -> State:
    """Read a `State`. Raises: ValueError."""
    found = _decode(raw, State)
    if found.status not in STATUSES:
        raise ValueError(f"{found.status!r} is no status")
    if found.result is not None:
        to_result(found.result)
    return found


def _decode(raw: bytes, kind: type[T]) -> T:
    try:
        loaded = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(loaded, dict):
        raise ValueError("no object")  # noqa: TRY004 - what is read is wrong, not the call
    document = cast("dict[str, Any]", loaded)
    if document.pop("version", None) != VERSION:
        raise ValueError("of another version")
    hints = typing.get_type_hints(kind)
    names = {attribute.name for attribute in fields(kind)}
    if set(document) != names:
        raise ValueError(f"other fields than it should have: {sorted(set(document) ^ names)}")
    for name, value in document.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name}: {value!r:.100} has another type")
    return kind(**document)


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - a type
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (int, bool, str):
        return type(value) is hint
    if hint == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[object]", value))
    if hint == dict[str, str]:
        return isinstance(value, dict) and all(isinstance(item, str) for item in cast("dict[str, object]", value).values())
    return isinstance(value, dict) or (value is None and type(None) in typing.get_args(hint))


# ---- Results ----

_NUMBERS: Final = ("cpu_time", "user_time", "system_time", "wall_time")
_COUNTS: Final = ("exit_code", "signal", "memory_peak", "max_rss", "pids_peak", "syscall")


def result_of(result: Result) -> dict[str, Any]:
    """A result as JSON has it, without its output."""
    found: dict[str, Any] = {name: getattr(result, name) for name in (*_NUMBERS, *_COUNTS)}
    return {**found, "argv": list(result.argv), "status": result.status.value, "oom_killed": result.oom_killed}


def to_result(document: Mapping[str, Any], stdout: bytes | None = None, stderr: bytes | None = None) -> Result:
    """Undo `result_of`. Raises: ValueError."""
    from sandbox import Result, Status  # who only lists containers has no need of them

    argv = document.get("argv")
    is_sound = (
        isinstance(argv, list)
        and all(isinstance(word, str) for word in cast("list[object]", argv))
        and all(_fits(document.get(name), float) for name in _NUMBERS)
        and all(document.get(name) is None or _fits(document.get(name), int) for name in _COUNTS)
        and isinstance(document.get("oom_killed"), bool)
    )
    if not is_sound:
        raise ValueError("no result of a program")
    figures: dict[str, Any] = {name: document.get(name) for name in (*_NUMBERS, *_COUNTS)}
    words: dict[str, Any] = {**figures, "max_rss": figures["max_rss"] or 0}
    return Result(
        argv=tuple(cast("list[str]", argv)),
        status=Status(document.get("status")),
        stdout=stdout,
        stderr=stderr,
        stdout_truncated=False,
        stderr_truncated=False,
        oom_killed=bool(document["oom_killed"]),
        **words,
    )


def renamed(config: Config, name: str) -> Config:
    """The same under another name."""
    return evolve(config, name=name)
