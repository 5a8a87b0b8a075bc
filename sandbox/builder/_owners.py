"""Owners and modes as ``--chown``, ``--chmod`` and mounts name them: names are looked up in the image's own files, and numbers are numbers."""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from sandbox.builder._layer import MAX_ID
from sandbox.builder._tree import Tree
from sandbox.errors import ImageError

_MAX_FILE: Final = 4 << 20  # of /etc/passwd and /etc/group (CVE-2024-9676)
_SYMBOLIC: Final = re.compile(r"([ugoa]*)((?:[-+=][rwxXst]*)+)", re.ASCII)
_SHIFTS: Final = {"u": 6, "g": 3, "o": 0}
_BITS: Final = {"r": 4, "w": 2, "x": 1}


def owner_of(text: str, tree: Tree) -> tuple[int, int]:
    """Turn ``user``, ``user:group``, ``1000:1000`` or ``:group`` (root's) into ids. Raises: ImageError: no such user or group in the image."""
    user, _, group = text.partition(":")
    if not user and not group:
        raise ImageError(f"{text!r} is not USER, USER:GROUP or :GROUP")
    uid, primary = _user(user, tree) if user else (0, 0)
    return uid, _group(group, tree) if group else primary


def _user(name: str, tree: Tree) -> tuple[int, int]:
    if name.isdecimal() and name.isascii():  # a number is that id, whatever a line of /etc/passwd calls itself (CVE-2016-3697)
        return _id(name), _id(name)
    for fields in _lines(tree, "etc/passwd"):
        if len(fields) >= 4 and fields[0] == name:
            return _id(fields[2]), _id(fields[3])
    if name == "root":
        return 0, 0
    raise ImageError(f"no user {name!r} in /etc/passwd of the image")


def _group(name: str, tree: Tree) -> int:
    if name.isdecimal() and name.isascii():
        return _id(name)
    for fields in _lines(tree, "etc/group"):
        if len(fields) >= 3 and fields[0] == name:
            return _id(fields[2])
    if name == "root":
        return 0
    raise ImageError(f"no group {name!r} in /etc/group of the image")


def _lines(tree: Tree, path: str) -> list[list[str]]:
    return [line.split(":") for line in os.fsdecode(tree.read(path, _MAX_FILE)).split("\n")]


def _id(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) <= 10 and int(text) <= MAX_ID):
        raise ImageError(f"{text[:20]!r} is no id of a container: 0 to {MAX_ID}")
    return int(text)


def id_inside(number: int) -> int:
    """The owner inside of a file of the store or of a stage: an ordinary user's own files stand for root's there."""
    return 0 if os.geteuid() != 0 and number in (os.geteuid(), os.getegid()) else number


def mode_of(text: str, current: int) -> int:
    """Apply ``0755`` or ``u=rwX,go=rX`` to *current* (with its file type). Raises: ImageError."""
    if re.fullmatch(r"[0-7]{1,5}", text, re.ASCII) and int(text, 8) <= 0o7777:
        return int(text, 8)
    bits = stat.S_IMODE(current)
    for clause in text.split(","):
        match = _SYMBOLIC.fullmatch(clause)
        if match is None:
            raise ImageError(f"--chmod={text}: neither octal digits nor such as u=rwX,go=rX")
        for operator, letters in re.findall(r"([-+=])([rwxXst]*)", match[2]):
            bits = _applied(bits, match[1] or "a", operator, letters, executable=stat.S_ISDIR(current) or bool(bits & 0o111))
    return bits


def _applied(bits: int, who: str, operator: str, letters: str, *, executable: bool) -> int:
    classes = "ugo" if "a" in who else who
    granted = letters.replace("X", "x" if executable else "")
    wanted = sum(_BITS[letter] for letter in set(granted) & _BITS.keys())
    mask = special = 0
    for name in set(classes):
        mask |= wanted << _SHIFTS[name]
        special |= {"u": stat.S_ISUID, "g": stat.S_ISGID, "o": 0}[name] if "s" in letters else 0
    mask |= special | (stat.S_ISVTX if "t" in letters else 0)
    if operator == "+":
        return bits | mask
    if operator == "-":
        return bits & ~mask
    cleared = sum(7 << _SHIFTS[name] for name in set(classes))
    return bits & ~cleared | mask
