"""Parsers for the texts of /proc. The parsers are pure; the readers say which file they read, and whose.

`parse_mountinfo` costs in proportion to the host's mounts: for diagnosis and tests, never on the way to a container.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import frozen

from sandbox._plan import IdMap

__all__ = [
    "MountInfo",
    "Stat",
    "format_id_map",
    "parse_id_map",
    "parse_mountinfo",
    "parse_stat",
    "parse_status",
    "read_id_map",
    "read_mountinfo",
    "read_number",
    "read_start_time",
    "read_status",
    "read_text",
]

_LAST_ID: Final = 0xFFFFFFFE  # 4294967295 is "no id"


def read_text(path: str) -> str:
    """A file of /proc, whole. Bytes that are no UTF-8 survive a round trip (os.fsencode)."""
    with open(path, "rb", buffering=0) as file:
        return os.fsdecode(file.readall())


def read_number(path: str) -> int | None:
    """The one number in a file of /proc/sys; None where the file is missing or hidden."""
    try:
        return int(read_text(path))
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None


# --- /proc/PID/status


def parse_status(text: str) -> Mapping[str, str]:
    """Give the lines of a status file, a name and a value each, by name. The kernel escapes newlines in a process's name: no line can be forged."""
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in text.split("\n")) if colon}


def read_status(pid: int | str = "self") -> Mapping[str, str]:
    return parse_status(read_text(f"/proc/{pid}/status"))


# --- /proc/PID/stat


@frozen
class Stat:
    """What we use of /proc/PID/stat (proc_pid_stat(5))."""

    pid: int
    comm: str
    state: str
    ppid: int
    start_time: int  # field 22: clock ticks since boot; with the pid, it names one process for ever


def parse_stat(text: str) -> Stat:
    """Parse /proc/PID/stat. The name may contain anything, also ``) R 1``: the last parenthesis ends it.

    Raises: ValueError for a text that is no stat line.
    """
    head, opening, _ = text.partition("(")
    front, closing, rest = text.rpartition(")")
    fields = rest.split()
    if not opening or not closing or len(fields) < 20:
        raise ValueError(f"not a line of /proc/PID/stat: {text[:80]!r}")
    return Stat(pid=int(head), comm=front[len(head) + 1 :], state=fields[0], ppid=int(fields[1]), start_time=int(fields[19]))


def read_start_time(pid: int) -> int:
    """When *pid* started. Raises: FileNotFoundError or ProcessLookupError when there is no such process."""
    return parse_stat(read_text(f"/proc/{pid}/stat")).start_time


# --- /proc/PID/mountinfo


@frozen
class MountInfo:
    """One line of mountinfo (proc_pid_mountinfo(5)); *fields* are the optional ones: ``shared:1``, ``master:2``."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    options: frozenset[str]
    fields: tuple[str, ...]
    fstype: str
    source: str
    super_options: str


def parse_mountinfo(text: str) -> tuple[MountInfo, ...]:
    """Parse a whole mountinfo. Raises: ValueError for a line that is none."""
    return tuple(_parse_mount(line) for line in text.split("\n") if line)


def _parse_mount(line: str) -> MountInfo:
    front, separator, back = line.partition(" - ")
    head, tail = front.split(" "), back.split(" ")
    if not separator or len(head) < 6 or len(tail) < 2:
        raise ValueError(f"not a line of mountinfo: {line[:80]!r}")
    return MountInfo(
        mount_id=int(head[0]),
        parent_id=int(head[1]),
        device=head[2],
        root=_unescape(head[3]),
        mount_point=_unescape(head[4]),
        options=frozenset(head[5].split(",")),
        fields=tuple(head[6:]),
        fstype=_unescape(tail[0]),
        source=_unescape(tail[1]),
        super_options=" ".join(tail[2:]),
    )


def _unescape(text: str) -> str:
    """Undo the kernel's escapes: blank, tab, newline, backslash and # as three octal digits."""
    first, *rest = text.split("\\")
    if not rest:
        return text
    return first + "".join(_unescaped(part) for part in rest)


def _unescaped(part: str) -> str:
    digits = part[:3]
    if len(digits) == 3 and all(digit in "01234567" for digit in digits):
        return chr(int(digits, 8)) + part[3:]
    return "\\" + part  # the kernel writes no such thing; keep it


def read_mountinfo(pid: int | str = "self") -> tuple[MountInfo, ...]:
    return parse_mountinfo(read_text(f"/proc/{pid}/mountinfo"))


# --- /proc/PID/uid_map, gid_map


def parse_id_map(text: str) -> tuple[IdMap, ...]:
    """Parse uid_map or gid_map. Raises: ValueError."""
    return tuple(_parse_id_line(line) for line in text.split("\n") if line.strip())


def _parse_id_line(line: str) -> IdMap:
    numbers = line.split()
    if len(numbers) != 3 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"not a line of an id map: {line[:80]!r}")
    inside, outside, count = map(int, numbers)
    if not count or max(inside, outside) + count - 1 > _LAST_ID:
        raise ValueError(f"out of range: {line[:80]!r}")
    return IdMap(inside, outside, count)


def format_id_map(maps: Iterable[IdMap]) -> bytes:
    """The text that the kernel takes, in one write, for uid_map or gid_map."""
    return b"".join(b"%d %d %d\n" % (item.inside, item.outside, item.count) for item in maps)


def read_id_map(kind: str, pid: int | str = "self") -> tuple[IdMap, ...]:
    """The map of *kind* (``uid`` or ``gid``) of a process, outside ids as seen from our own user namespace."""
    return parse_id_map(read_text(f"/proc/{pid}/{kind}_map"))
