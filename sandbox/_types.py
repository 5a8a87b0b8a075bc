"""Plain values at the public edge: sizes, times, paths, names; each converter refuses what makes no sense."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar, cast

from sandbox.errors import UsageError

StrPath = str | os.PathLike[str]
Size = int | str
T = TypeVar("T")
Argument = str | bytes | os.PathLike[str]
Env = Mapping[str, Argument] | Mapping[bytes, Argument]  # subprocess's own type for it

# subprocess's words for a program's standard streams, and its numbers.
PIPE: Final = -1
STDOUT: Final = -2
DEVNULL: Final = -3

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\s*", re.IGNORECASE | re.ASCII)
MAX_SIZE: Final = (1 << 63) - 1
MAX_SECONDS: Final = 10.0 * 365 * 86400


class Shown:
    """The base of classes with ``@frozen(repr=False)`` that have a `repr` like attrs' all the same: attrs compiles one for each, at each start."""

    __slots__ = ()
    __attrs_attrs__: ClassVar[tuple[Any, ...]] = ()

    def __repr__(self) -> str:
        fields = (f"{field.name}={getattr(self, field.name)!r}" for field in self.__attrs_attrs__ if field.repr)
        return f"{type(self).__qualname__}({', '.join(fields)})"


def to_size(value: Size, *, what: str = "size", least: int = 0) -> int:
    """Turn bytes or ``"64M"``, ``"1.5G"`` (binary multiples, as Docker's) into bytes.

    Raises: UsageError for negative, absurd (above 2**63 - 1), fractional-byte or malformed sizes.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UsageError(f"{what}: {value!r} is not a size; give bytes as an int, or a string such as '64M'")
    size = value if isinstance(value, int) else _parse_size(value, what)
    if not least <= size <= MAX_SIZE:
        raise UsageError(f"{what}: {value!r} is out of range; give {least} to {MAX_SIZE} bytes")
    return size


def _parse_size(text: str, what: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{what}: {text!r} is not a size; write it as '4096', '64M' or '1.5G'")
    number, unit = match[1], _UNITS[match[2].lower()]
    if len(number) > 40:
        raise UsageError(f"{what}: {text[:50]!r} is out of range")
    return int(number) * unit if number.isdigit() else int(float(number) * unit)


def to_seconds(value: float, *, what: str = "time") -> float:
    """Check a duration in seconds: finite, above 0 and below ten years."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{what}: {value!r} is not a time; give seconds as a number")
    if not math.isfinite(value) or not 0 < value <= MAX_SECONDS:
        raise UsageError(f"{what}: {value!r} is out of range; give seconds above 0 and below ten years")
    return float(value)


def to_count(value: int, *, what: str, least: int = 1, most: int = 1 << 31) -> int:
    """Check a whole number between *least* and *most*."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{what}: {value!r} is not a whole number")
    if not least <= value <= most:
        raise UsageError(f"{what}: {value} is out of range; give {least} to {most}")
    return value


def to_text(value: Argument, *, what: str) -> bytes:
    """Turn one argument, variable or path into the bytes the kernel gets; NUL cannot be passed on."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise UsageError(f"{what}: {value!r} is not a str, bytes or path")
    try:
        raw = os.fsencode(value)
    except UnicodeEncodeError:
        raise UsageError(f"{what}: {value!r} contains half a surrogate pair, which has no bytes") from None
    if b"\0" in raw:
        raise UsageError(f"{what}: {value!r} contains a NUL byte, which no program can be given")
    return raw


def to_argv(argv: Sequence[Argument]) -> tuple[bytes, ...]:
    """Check an argument vector: a non-empty sequence of str, bytes or paths, never one shell string."""
    if isinstance(argv, (str, bytes, os.PathLike)):
        raise UsageError(f"argv: {argv!r} is one string; give a list such as ['sh', '-c', {argv!r}]")
    result = tuple(to_text(arg, what="argv") for arg in to_items(argv, what="argv", like="['sh', '-c', 'true']"))
    if not result or not result[0]:
        raise UsageError("argv: empty; the first item names the program")
    return result


def to_items(value: Iterable[T], *, what: str, like: str) -> tuple[T, ...]:
    """The items of what should be iterable."""
    try:
        return tuple(value)
    except TypeError:
        raise UsageError(f"{what}: {value!r} is not a list; give such as {like}") from None


def to_env(env: Env | Iterable[tuple[Argument, Argument]]) -> tuple[tuple[str, str], ...]:
    """Check environment variables: names without ``=`` and NUL, values without NUL; as str, as os.environ would show them."""
    pairs = cast("Iterable[tuple[Argument, Argument]]", env.items() if isinstance(env, Mapping) else env)
    items = to_items(pairs, what="env", like="{'LANG': 'C'}")
    return tuple(_to_variable(item) for item in items)


def _to_variable(item: tuple[Argument, Argument]) -> tuple[str, str]:
    if not isinstance(item, tuple) or len(item) != 2:
        raise UsageError(f"env: {item!r} is not a name and a value; give a mapping such as {{'LANG': 'C'}}")
    name, value = item
    if not isinstance(name, (str, bytes)) or not isinstance(value, (str, bytes, os.PathLike)):
        raise UsageError(f"env: {name!r}={value!r}: names are str or bytes, values str, bytes or paths")
    name = os.fsdecode(name)
    if not name or "=" in name or "\0" in name:
        raise UsageError(f"env: {name!r} is not a variable's name; it must be non-empty, without '=' and NUL")
    to_text(name, what="env")
    raw = to_text(value, what=f"env[{name!r}]")
    return name, value if isinstance(value, str) else os.fsdecode(raw)


def to_inside_path(value: StrPath, *, what: str) -> str:
    """Check an absolute path inside a container and make it canonical; ``..`` is refused, it never helps."""
    path = os.fsdecode(to_text(value, what=what))
    if not path.startswith("/"):
        raise UsageError(f"{what}: {path!r} is relative; give an absolute path inside the container")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(f"{what}: {path!r} contains '..'; give the path without it")
    if any(len(os.fsencode(part)) > 255 for part in parts) or len(os.fsencode(path)) > 4095:
        raise UsageError(f"{what}: {path[:60]!r}... is longer than the kernel allows (255 a name, 4095 in all)")
    return "/" + "/".join(parts)


def to_bool(value: object, *, what: str) -> bool:
    """True or False, and nothing that merely counts as one of them: ``strict=""`` is a mistake. Raises: UsageError."""
    if value is not True and value is not False:
        raise UsageError(f"{what}: {value!r} is neither True nor False")
    return value


def to_signal(signum: object) -> int:
    """A signal's number, 1 to 64. Raises: UsageError."""
    if isinstance(signum, bool) or not isinstance(signum, int) or not 1 <= signum <= 64:
        raise UsageError(f"signal: {signum!r} is not the number of a signal (1 to 64)")
    return int(signum)
