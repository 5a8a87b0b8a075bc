"""A launcher of which one chosen system call fails, or waits: see faults.h, whose layout this shares."""

from __future__ import annotations

import enum
import mmap
import os
import re
import shlex
import struct
import subprocess
from pathlib import Path
from typing import Final

from attrs import define, frozen

HERE: Final = Path(__file__).parent
SOURCES: Final = HERE.parents[1] / "sandbox/_launch/c"
MARK: Final = b"this launcher has faults"


class Role(enum.IntEnum):
    """Who makes the call."""

    STARTER = 0  # the launcher's first process, which starts it again and ends
    LAUNCHER = 1
    INIT = 2
    PROGRAM = 3  # a program's process until its execve
    HELPER = 4  # of the launcher: joins namespaces, or lets go of them


class Action(enum.IntEnum):
    NONE = 0
    FAIL = 1
    WAIT = 2


_HEAD: Final = struct.Struct("=4i2i2i5II")
_ENTRY: Final = struct.Struct("=I60s")
_ENTRIES: Final = 8192
_GO: Final = 5 * 4


@frozen
class Call:
    """One call that was made: the *number*-th of its role; *text* begins with its place in the sources."""

    role: Role
    number: int
    text: str

    @property
    def place(self) -> str:
        return self.text.partition(" ")[0]

    @property
    def name(self) -> str:
        match = re.match(r"\S+ (\w+)", self.text)
        return match[1] if match else self.text


@define(eq=False)
class Faulty:
    """The launcher's program, and what is asked of it next."""

    program: Path
    _map: mmap.mmap

    @classmethod
    def build(cls, directory: Path) -> Faulty:
        """Compile it. Takes a second or two."""
        state, program = directory / "state", directory / "launcher"
        state.write_bytes(bytes(_HEAD.size + _ENTRIES * _ENTRY.size))
        state.chmod(0o666)
        flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-include", str(HERE / "faults.h"), f'-DFAULTS_FILE="{state}"']
        sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
        subprocess.run([*shlex.split(os.environ.get("CC", "gcc")), *flags, *sources, "-o", str(program)], check=True)
        with state.open("r+b") as file:
            return cls(program, mmap.mmap(file.fileno(), 0))

    def ask(self, action: Action, role: Role = Role.STARTER, number: int = 0, error: int = 0) -> None:
        """Ask for a fault, and begin to count anew."""
        self._map[: _HEAD.size] = _HEAD.pack(action, role, number, error, *[0] * (2 + 2 + 5 + 1))

    def go_on(self) -> None:
        """Let the call that waits be made."""
        self._map[_GO : _GO + 4] = struct.pack("=i", 1)

    @property
    def has_reached(self) -> bool:
        """Whether it has come to the call."""
        return bool(self._state()[4])

    @property
    def launcher(self) -> int:
        """The launcher's pid; 0 as long as there is none."""
        return int(self._state()[7])

    def calls(self) -> list[Call]:
        """All calls that were made since `ask`, by their roles and in their order."""
        logged = min(self._state()[13], _ENTRIES)
        counts = dict.fromkeys(Role, 0)
        found: list[Call] = []
        for at in range(logged):
            number, text = _ENTRY.unpack_from(self._map, _HEAD.size + at * _ENTRY.size)
            role = Role(number)
            found.append(Call(role, counts[role], text.partition(b"\0")[0].decode()))
            counts[role] += 1
        return found

    def _state(self) -> tuple[int, ...]:
        return _HEAD.unpack_from(self._map)
