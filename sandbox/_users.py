"""Users and groups of a container: ``"1000"``, ``"name"``, ``"user:group"`` to numbers, from its own passwd and group files.

The files come from an image or from a program inside: they are read bounded, as text, and what is malformed is skipped.
A number is always a number, whatever a file says (CVE-2016-3697, CVE-2024-40635).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandbox._ids import Ids
from sandbox.errors import UsageError
from sandbox.fs import FsPlan, HostView, Layers, Root, read_file

if TYPE_CHECKING:
    from sandbox._spec import ContainerSpec

MAX_FILE: Final = 1 << 20
MAX_GROUPS: Final = 64
_RESOLVED: Final = 64  # answers that are remembered, each with a passwd file
_MOST_REMEMBERED: Final = 1 << 14
_resolved: dict[tuple[str, bytes, int, int | None, int], Identity] = {}


@frozen
class Identity:
    """Who a program runs as; *home* is None when the user has no line in passwd."""

    uid: int
    gid: int
    groups: tuple[int, ...] | None
    home: str | None = None

    def alone(self) -> Identity:
        """The same, where setgroups(2) is denied: in a user namespace with one id (user_namespaces(7))."""
        return Identity(self.uid, self.gid, None, self.home)


def known(user: str, root: Root) -> Identity | None:
    """Who *user* is when that needs no file: the user of a host view, whose passwd is our own making."""
    if isinstance(root, HostView) and user == f"{root.uid}:{root.gid}":
        return Identity(root.uid, root.gid, (root.gid,), f"/home/{root.user}")
    return None


def identify(spec: ContainerSpec, fsplan: FsPlan, ids: Ids) -> Identity | None:
    """The container's user by the files of its root, unless the caller mounts something over them; None: to be asked inside."""
    if any(mount.target == "/etc" or mount.target.startswith("/etc/") for mount in spec.filesystem.mounts):
        return None
    if spec.host_view:
        return known(spec.user, spec.filesystem.root)
    try:
        return _resolve_in(spec.user, fsplan.read("/etc/passwd", MAX_FILE), lambda: fsplan.read("/etc/group", MAX_FILE), ids)
    except UsageError:  # it may yet be put there
        return None


def _resolve_in(user: str, passwd: bytes, group: Callable[[], bytes], ids: Ids) -> Identity:
    """As `resolve`; an answer that took no other file is remembered with what that one said."""
    key = user, passwd, ids.count, ids.only, ids.init_gid
    found = _resolved.get(key)
    if found is None:
        asked: list[bytes] = []

        def read() -> bytes:
            asked.append(group())
            return asked[0]

        found = resolve(user, passwd=lambda: passwd, group=read, ids=ids)
        if not asked and len(passwd) <= _MOST_REMEMBERED:
            if len(_resolved) >= _RESOLVED:
                _resolved.clear()
            _resolved[key] = found
    return found


def number_of(user: str, root: Root) -> int:
    """The uid of *user* as far as it is known before there is a container: of a number, or of a name in layers; else 0."""
    word = user.partition(":")[0]
    if word.isascii() and word.isdigit():
        return int(word) if len(word) < 10 else 0
    if not isinstance(root, Layers):
        return 0
    row = next((row for row in _lines(read_file(root, "/etc/passwd", MAX_FILE), 4) if row[0] == word), None)
    return int(row[2]) if row is not None and row[2].isascii() and row[2].isdigit() and len(row[2]) < 10 else 0


def _lines(text: bytes, fields: int) -> list[list[str]]:
    rows = (line.split(":") for line in text[:MAX_FILE].decode("utf-8", "surrogateescape").splitlines())
    return [row for row in rows if len(row) >= fields and row[0]]


def _number(word: str, what: str, ids: Ids) -> int | None:
    """A decimal number, or None for a name; refuses numbers that are no id of this container."""
    digits = word.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        return None
    if word != digits or len(digits) > 10 or not ids.has(int(digits)):
        raise UsageError(f"user: {what} {word} is out of range; this container has {ids.describe()}")
    return int(digits)


def _field(row: list[str], at: int, ids: Ids) -> int | None:
    return int(row[at]) if row[at].isascii() and row[at].isdigit() and len(row[at]) <= 10 and ids.has(int(row[at])) else None


def resolve(user: int | str, *, passwd: Callable[[], bytes], group: Callable[[], bytes], ids: Ids) -> Identity:
    """Look *user* up. The files are read only when they are needed.

    Raises: UsageError for an unknown name, or an id that the container does not have.
    """
    if isinstance(user, bool) or not isinstance(user, (int, str)) or user == "":
        raise UsageError(f"user: {user!r} is not a number, a name, or 'user:group'")
    name, _, group_name = str(user).partition(":")
    if ":" in group_name or (":" in str(user) and not group_name):
        raise UsageError(f"user: {user!r} is not 'user:group'")
    uid = _number(name, "uid", ids)
    row = _find(_lines(passwd(), 4), name, uid, ids)
    if uid is None:
        uid = None if row is None else _field(row, 2, ids)
    if uid is None:
        raise UsageError(f"user: {name!r} is not in the container's /etc/passwd; give a number, or a user that is")
    home = row[5] if row is not None and len(row) > 5 and row[5].startswith("/") else None
    gid = ids.init_gid if row is None else (_field(row, 3, ids) or ids.init_gid)
    number = _number(group_name, "gid", ids) if group_name else None
    if number is not None:  # nothing else of the group file counts
        return Identity(uid, number, (number,), home)
    rows = _lines(group(), 3) if group_name or row is not None else []
    if group_name:
        gid = _group(rows, group_name, ids)
    # As setgroups after login: the user's own groups, unless a group was named.
    extra = () if group_name or row is None else _memberships(rows, row[0], ids)
    return Identity(uid, gid, tuple(dict.fromkeys((gid, *extra)))[:MAX_GROUPS], home)


def _find(rows: list[list[str]], name: str, uid: int | None, ids: Ids) -> list[str] | None:
    if uid is None:
        return next((row for row in rows if row[0] == name), None)
    return next((row for row in rows if _field(row, 2, ids) == uid), None)


def _group(rows: list[list[str]], name: str, ids: Ids) -> int:
    row = next((row for row in rows if row[0] == name), None)
    gid = None if row is None else _field(row, 2, ids)
    if gid is None:
        raise UsageError(f"user: group {name!r} is not in the container's /etc/group; give a number, or a group that is")
    return gid


def _memberships(rows: list[list[str]], user: str, ids: Ids) -> list[int]:
    found = (_field(row, 2, ids) for row in rows if len(row) > 3 and user in row[3].split(","))
    return [gid for gid in found if gid is not None]
