"""Subordinate ids: which ranges /etc/subuid and /etc/subgid give to a user, and whether newuidmap(1) is there to use them."""

from __future__ import annotations

import os
from typing import Final

from attrs import frozen

__all__ = ["Owned", "SubId", "helpers", "of_user", "parse_subid", "ranges_for", "read"]

SUBUID: Final = "/etc/subuid"
SUBGID: Final = "/etc/subgid"
_MOST: Final = 1 << 20  # bytes; a host with more users than that keeps them in a directory service
_LAST: Final = 0xFFFFFFFE


@frozen
class SubId:
    """One line: *owner* (a name or a number) may use *count* ids from *first* on."""

    owner: str
    first: int
    count: int


@frozen
class Owned:
    """What one user may map: ranges of (first, count) for users and for groups."""

    uids: tuple[tuple[int, int], ...]
    gids: tuple[tuple[int, int], ...]


def parse_subid(text: str) -> tuple[SubId, ...]:
    """Parse /etc/subuid or /etc/subgid (subuid(5)). Lines that shadow's own programs would skip are skipped: they give nothing."""
    return tuple(found for line in text.split("\n") if (found := _parse_line(line)) is not None)


def _parse_line(line: str) -> SubId | None:
    fields = line.strip().split(":")
    if len(fields) != 3 or not fields[0] or line.startswith("#"):
        return None
    if not all(field.isascii() and field.isdigit() and len(field) <= 10 for field in fields[1:]):
        return None
    first, count = int(fields[1]), int(fields[2])
    return SubId(fields[0], first, count) if count and first and first + count - 1 <= _LAST else None


def ranges_for(lines: tuple[SubId, ...], *, name: str | None, uid: int) -> tuple[tuple[int, int], ...]:
    """The ranges (first, count) of the user called *name* or numbered *uid*: both spellings count, in the file's order.

    A user whose *name* is another user's number gets nothing by it.
    """
    owners = {str(uid)} if name is None or name.isdigit() else {name, str(uid)}
    return tuple((line.first, line.count) for line in lines if line.owner in owners)


def of_user(uid: int) -> Owned:
    """What *uid* may map on this host; empty where the files are missing. Groups are owned by the user as well (subgid(5))."""
    name = _name_of(uid)
    uids, gids = (ranges_for(read(path), name=name, uid=uid) for path in (SUBUID, SUBGID))
    return Owned(uids, gids)


def _name_of(uid: int) -> str | None:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def read(path: str) -> tuple[SubId, ...]:
    """The lines of /etc/subuid or /etc/subgid; none where the file is missing."""
    try:
        with open(path, "rb") as file:
            return parse_subid(os.fsdecode(file.read(_MOST)))
    except (FileNotFoundError, PermissionError):
        return ()


def helpers() -> tuple[str, str] | None:
    """The paths of newuidmap and newgidmap, where the launcher starts them (not by PATH, which is the caller's: they are set-uid)."""
    pair = "/usr/bin/newuidmap", "/usr/bin/newgidmap"
    return pair if all(os.access(path, os.X_OK) for path in pair) else None
