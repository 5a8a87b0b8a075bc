"""Ending what runs in a container as it wants to be ended: its signal first, then SIGKILL.

Who is to be told are init's children: the first process of each program, and whoever lost its parent. The kernel lists them
(``/proc/PID/task/TID/children``); each is then known by a pidfd, taken before the list is read again: one that is in both is not another
process with its number. Waiting is for pidfds.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Generator
from typing import Final

from sandbox._session import Session
from sandbox._sys import calls
from sandbox.errors import ImageError, UnsupportedError

_AT_ONCE: Final = 64  # descriptors: a program may leave thousands of processes to init
_REAL_TIME: Final = re.compile(r"RT(MIN\+|MAX-)([0-9]{1,2})", re.ASCII)


def to_number(name: str) -> int:
    """The number of an image's STOPSIGNAL: ``"SIGTERM"``, ``"TERM"``, ``"15"``, ``"SIGRTMIN+3"``; "" is SIGTERM. Raises: ImageError."""
    word = name.upper().removeprefix("SIG")
    match = _REAL_TIME.fullmatch(word)
    if match is not None:
        number = signal.SIGRTMIN + int(match[2]) if match[1] == "MIN+" else signal.SIGRTMAX - int(match[2])
    elif word.isascii() and word.isdigit() and len(word) < 3:
        number = int(word)
    else:
        number = int(getattr(signal, f"SIG{word}", 0)) if word.isalnum() else 0
    if not name:
        return int(signal.SIGTERM)
    if not 1 <= number <= 64:
        raise ImageError(f"the image's STOPSIGNAL {name!r} is no signal")
    return number


def stop(session: Session, signum: int, timeout: float) -> bool:
    """Send *signum*, and after *timeout* seconds SIGKILL; whether that was not needed. Waits until no program is left.

    Raises: UnsupportedError: the kernel does not say who runs.
    """
    deadline = time.monotonic() + timeout
    everybody = _listed(session)
    for first in range(0, len(everybody), _AT_ONCE):
        with _children(session, everybody[first : first + _AT_ONCE]) as found:
            for fd in found:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signum)
    if _await_none(session, deadline):
        return True
    session.signal_all(signal.SIGKILL)
    _await_none(session, None)
    return False


def _await_none(session: Session, deadline: float | None) -> bool:
    """Wait until init has no children; False at the *deadline*."""
    while pids := _listed(session):
        with _children(session, pids[:_AT_ONCE]) as found:  # none: they have just ended, and what they left to init is not in the list yet
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            poll = select.poll()
            for fd in found:
                poll.register(fd, select.POLLIN)
            if found:
                poll.poll(None if left is None else left * 1000)
            if deadline is None:  # whoever was made while the rest was killed
                session.signal_all(signal.SIGKILL)
    return True


@contextlib.contextmanager
def _children(session: Session, pids: list[int]) -> Generator[list[int]]:
    """The pidfds of those of *pids* that are init's children still."""
    with contextlib.ExitStack() as stack:
        opened: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                opened[pid] = calls.pidfd_open(pid)
                stack.callback(os.close, opened[pid])
        still = _listed(session) if opened else []
        yield [fd for pid, fd in opened.items() if pid in still]


def _listed(session: Session) -> list[int]:
    try:
        with open(f"/proc/{session.pid}/task/{session.pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError as error:
        if not session.is_alive:
            return []
        raise UnsupportedError(
            "to stop a container takes the list of its processes, which this host does not give",
            feature="proc:children",
            remedy="boot a kernel with CONFIG_PROC_CHILDREN, and /proc without hidepid; or use kill()",
        ) from error
