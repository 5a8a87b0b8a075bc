"""The numbers of wire.md; `c/wire.h` and `c/exec.h` have the same."""

from __future__ import annotations

import enum
import struct
from typing import Final

HEAD: Final = struct.Struct("<HHI")
HEAD_MEMFD: Final = 1
INLINE: Final = 65536  # bytes of a body in a datagram; a larger one travels in a memfd
MAX_BODY: Final = 16 << 20
MAX_FDS: Final = 250
SLOTS: Final = 256
OWN_SLOTS: Final = 110  # from here on, operations number what they open; below are the descriptors that come with a request
NO_SLOT: Final = 0xFFFF
OWN_NULL: Final = 0xFFFE  # of a program's descriptors: the container's own /dev/null
ROLE_SLOT: Final = 0xFF00  # + ROLE_*: a directory that init keeps


class Msg(enum.IntEnum):
    """Kinds of messages; from 64 on they come from the launcher or from init."""

    CREATE = 1
    EXEC = 2
    KILL = 3
    CHANNEL = 4
    OPS = 5
    SIGNAL_ALL = 6
    CLEANUP = 7
    COMPLETE = 8
    GROUPS = 9
    FINISH = 10
    RESET = 11
    CLONED = 64
    GONE = 65
    FAILED = 66
    READY = 67
    STARTED = 68
    END = 69
    DONE = 70
    OPENED = 71


class GroupStep(enum.IntEnum):
    """What the launcher does with a control group."""

    MAKE = 0
    WRITE = 1
    REMOVE = 2
    READ = 3
    JOIN = 4
    GIVE = 5
    OWN = 6


class Phase(enum.IntEnum):
    """Where a set-up failed."""

    CLONE = 1
    MAPS = 2
    HOST = 3
    INIT = 4
    EXEC = 5
    REQUEST = 6
    GROUPS = 7


class Step(enum.IntEnum):
    """Where a program failed to start."""

    CLONE = 1
    CGROUP = 2
    MARK = 3
    TTY = 4
    FDS = 5
    RLIMIT = 6
    CWD = 7
    IDS = 8
    EXECVE = 9
    REQUEST = 10
    BUSY = 11


class Cause(enum.IntEnum):
    """Why a program's run ended, as far as init decides it."""

    NONE = 0
    WALL = 1
    CPU = 2
    KILLED = 3
    SYSCALL = 4
    NOT_STARTED = 5


class CpuFormat(enum.IntEnum):
    """What the descriptor that tells CPU time contains."""

    NONE = 0
    NANOSECONDS = 1
    CPU_STAT = 2


DETAIL_AT_END: Final = 1  # with Cause.CPU: found passed when the program had ended; nothing was killed for it
CREATE_ONESHOT: Final = 1
CREATE_DENY_SETGROUPS: Final = 2
CREATE_DIRECT: Final = 4
CREATE_MAP_HELPERS: Final = 8
CREATE_PREPARED: Final = 16
CREATE_CAN_WAIT: Final = 32
EXEC_REPORT_START: Final = 1
EXEC_TTY: Final = 2
EXEC_SAME_CPU: Final = 4
