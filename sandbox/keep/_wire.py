"""What a keeper and its clients say to each other. Pure: bytes in, objects out.

Theory of operation
-------------------
A client connects to the keeper's socket (SOCK_SEQPACKET) and sends one request: a JSON object of at most MAX_MESSAGE bytes, ``{"do": VERB, ...}``,
with the descriptors that the verb takes. What comes back, each a message of its own:

    {"more": [...]}       a part of a long answer
    {"log": 1}            "follow", "attach": there is more in the log
    {"ok": {...}}         the answer; for "exec", that the program has started
    {"ended": {...}}      "exec", "attach": how the program ended
    {"error": {...}}      instead of "ok": what was raised (`error_of`, `to_error`)

While an "exec" runs, the client may send ``{"signal": N}``, or ``{"detach": true}``, and go. The end of the connection is the end of what was
asked: an exec that is not detached is killed. A request has exactly the fields of VERBS, of their types; everything else is a ProtocolError, and
the connection ends.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NoReturn, cast

from attrs import frozen

from sandbox import BrokenError, ProtocolError, SandboxError, SetupError, UnsupportedError, errors

MAX_MESSAGE: Final = 1 << 17
MAX_FDS: Final = 3
MAX_PART: Final = 1 << 15  # bytes of one part of a long answer, about

_TEXTS: Final = "texts"
_MAPPING: Final = "mapping"
Kind = type | str

_EXEC: Final[dict[str, Kind]] = {"argv": _TEXTS, "env": _MAPPING, "cwd": str, "user": str, "tty": bool, "detach": bool, "rows": int, "columns": int}
VERBS: Final[Mapping[str, Mapping[str, Kind]]] = {
    "exec": _EXEC,
    "stop": {"timeout": float},
    "start": {},
    "restart": {"timeout": float},
    "kill": {"signal": int},
    "pause": {},
    "resume": {},
    "wait": {},
    "follow": {},
    "attach": {"start": bool},
    "remove": {"force": bool},
    "rename": {"name": str},
    "commit": {"name": str, "author": str, "message": str, "changes": _TEXTS, "pause": bool},
    "diff": {},
    "export": {},
    "copy_in": {"source": str, "target": str},
    "copy_out": {"source": str, "target": str},
    "connect": {"network": str, "address": str, "address6": str, "mac": str, "aliases": _TEXTS, "links": _MAPPING},
    "disconnect": {"network": str},
    "stats": {},
    "update": {"restart": str, "memory": str, "cpus": float, "pids": int},
    "ping": {},
}
FDS: Final = {"export": 1}  # beside those of exec


def encode(message: Mapping[str, Any]) -> bytes:
    """One message. Raises: UsageError: it is too large."""
    raw = json.dumps(message, separators=(",", ":")).encode()
    if len(raw) > MAX_MESSAGE:
        raise errors.UsageError(f"what is to be sent takes {len(raw)} bytes; {MAX_MESSAGE} are the most")
    return raw


def decode(raw: bytes) -> dict[str, Any]:
    """Read one message. Raises: ProtocolError."""
    if len(raw) > MAX_MESSAGE:
        raise ProtocolError("a message is too long")
    try:
        message = json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ProtocolError("a message is no JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message is no object")
    return cast("dict[str, Any]", message)


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)  # NaN and Infinity, which Python would take


@frozen
class Request:
    """What a client wants."""

    verb: str
    fields: Mapping[str, Any]

    @property
    def fds(self) -> int:
        """How many descriptors come with it."""
        if self.verb == "exec":
            return 0 if self.fields["tty"] or self.fields["detach"] else 3
        return FDS.get(self.verb, 0)


def request(verb: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - of VERBS
    """Make a request that `to_request` takes."""
    return {"do": verb, **fields}


def to_request(message: Mapping[str, Any], *, fds: int) -> Request:
    """Check a request, which came with so many descriptors. Raises: ProtocolError."""
    fields = dict(message)
    verb = fields.pop("do", None)
    wanted = VERBS.get(verb) if isinstance(verb, str) else None
    if not isinstance(verb, str) or wanted is None:
        raise ProtocolError(f"{verb!r:.40} is nothing that a keeper does; it may be of another version")
    if set(fields) != set(wanted):
        raise ProtocolError(f"{verb}: other fields than it has")
    for name, kind in wanted.items():
        if not _fits(fields[name], kind):
            raise ProtocolError(f"{verb}: {name} has another type")
    found = Request(verb, fields)
    if fds != found.fds:
        raise ProtocolError(f"{verb}: {fds} descriptors instead of {found.fds}")
    return found


def _fits(value: object, kind: Kind) -> bool:
    if kind == _TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[object]", value))
    if kind == _MAPPING:
        return isinstance(value, dict) and all(isinstance(item, str) for item in cast("dict[str, object]", value).values())
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return type(value) is int and abs(value) < 1 << 31
    return type(value) is kind


def parts(items: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Messages that hold a long answer."""
    part: list[Any] = []
    size = 0
    for item in items:
        part.append(item)
        size += len(json.dumps(item))
        if size > MAX_PART:
            yield {"more": part}
            part, size = [], 0
    if part:
        yield {"more": part}


# ---- Errors ----

_FIELDS: Final = ("errno", "feature", "filename", "hint", "limit", "name", "operation", "owner", "pid", "port", "program", "remedy", "status", "step")
_NO_KINDS: Final = ("CommandError", "DockerfileError")  # they carry more than words
_MOST_WORDS: Final = 8000  # bytes, as JSON has it; and so below
_MOST_OF_A_FIELD: Final = 4096
_WIDEST: Final = len(json.dumps("\U0010ffff")) - 2  # bytes of one character


def error_of(error: BaseException) -> dict[str, Any]:
    """What was raised, as JSON has it; what is none of our errors is told as one."""
    if not isinstance(error, SandboxError):
        error = _as_ours(error)
    found = {name: getattr(error, name, None) for name in _FIELDS}
    texts = {name: _cut(value, _MOST_OF_A_FIELD) for name, value in found.items() if isinstance(value, str)}
    fields = {**texts, **{name: value for name, value in found.items() if isinstance(value, int)}}
    return {"type": type(error).__name__, "message": _cut(str(error), _MOST_WORDS), "fields": fields}


def _cut(text: str, most: int) -> str:
    """So much of it that it takes *most* bytes of a message: an error names what a client has said, of which a message may be full."""
    text = text[:most]
    return text if len(json.dumps(text)) <= most + 2 else text[: most // _WIDEST]


def _as_ours(error: BaseException) -> SandboxError:
    if isinstance(error, OSError) and error.errno:
        file = error.filename  # a number, where it was a descriptor
        operation = os.fsdecode(file) if isinstance(file, (str, bytes)) else f"keeper: {type(error).__name__}"
        try:
            errors.raise_shortage(error, operation)
        except SetupError as shortage:
            return shortage
        return SetupError(operation, error.errno, step="keeper")
    return BrokenError(f"keeper: {type(error).__name__}: {error}; a fault of ours")


def to_error(document: object) -> SandboxError:
    """Make the error again, of the same kind. What makes no sense is a ProtocolError."""
    given = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    name, message, fields = given.get("type"), given.get("message"), given.get("fields")
    kind = getattr(errors, name, None) if isinstance(name, str) and name in errors.__all__ else None
    if kind is None or not isinstance(message, str) or not isinstance(fields, dict):
        return ProtocolError("the keeper's error makes no sense; it may be of another version")
    said = {key: value for key, value in cast("dict[str, object]", fields).items() if key in _FIELDS and isinstance(value, (str, int))}
    return _made(kind, message, said)


def _made(kind: type[SandboxError], message: str, said: Mapping[str, str | int]) -> SandboxError:
    """Make an error of a kind, with what it carries beside its message."""
    if kind.__name__ in _NO_KINDS:
        kind = kind.__mro__[1]
    if issubclass(kind, SetupError):
        number = said.get("errno")
        error: SandboxError = kind(str(said.get("operation", "")), number if isinstance(number, int) else 0)
        cast("OSError", error).strerror = message
    elif issubclass(kind, UnsupportedError):
        error = kind(message, feature="", remedy="")  # the message has the remedy in it
    else:
        wanted = [name for name, each in inspect.signature(kind.__init__).parameters.items() if each.kind is each.KEYWORD_ONLY]
        words: dict[str, Any] = dict.fromkeys(wanted)
        error = kind(message, **words)
    for key, value in said.items():
        setattr(error, key, value)
    return error
