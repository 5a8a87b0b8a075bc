"""How a keeper comes into being, from both sides.

Theory of operation
-------------------
`launch` starts a new Python (subprocess: no Python runs between the clone and the exec, so threads of the caller are in nobody's way) with one end
of a socket pair. The new process, which has no threads yet, forks once and its first half ends, so that the keeper is nobody's child but init's, and
the caller has no zombie to reap. It has its own session, /dev/null for its standard streams, no descriptor but that socket, and of the
caller's environment what it needs.

The caller then says what is wanted, once: pickled, as only the caller can have written it (it is the other end of an anonymous pair; nothing that is
kept, and nothing that comes through the socket in the store, is ever unpickled). The keeper answers with one JSON message: the container's id when
its program has started, or what was raised. When nobody takes that answer, the keeper ends, and leaves nothing.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

import sandbox
from sandbox import BrokenError, UnsupportedError, UsageError
from sandbox.keep._wire import decode, to_error

if TYPE_CHECKING:
    from sandbox.image import Healthcheck

LENGTH: Final = struct.Struct("<I")
MAX_WISHES: Final = 16 << 20
_CODE: Final = """\
import os, sys
if os.fork(): os._exit(0)
os.setsid()
import json
sys.path[:] = json.loads(sys.argv[2])
from sandbox.keep._begin import main
main(int(sys.argv[1]))
"""
# What a keeper reads of the environment, and Python, the linker and busctl. It goes on for long, and the rest may be secrets of the caller's.
_NEEDED: Final = frozenset(("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "DBUS_SESSION_BUS_ADDRESS"))
_NEEDED_KINDS: Final = ("SANDBOX_", "XDG_", "LC_", "LD_", "PYTHON")


@frozen
class Wishes:
    """What is wanted: of the store, of `Container`, of `popen`, and the words of `sandbox run` about networks (an argparse.Namespace's)."""

    store: str
    name: str
    program: tuple[Any, ...] | None
    container: Mapping[str, Any]
    options: Mapping[str, Any]
    network: Mapping[str, Any]
    labels: Mapping[str, str]
    entrypoint: str | None = None
    remove: bool = False
    tty: bool = False
    interactive: bool = False
    restart: str = "no"
    log_size: int = 16 << 20
    health: Healthcheck | None = None  # None: what the image says


def launch(wishes: Wishes) -> tuple[str, tuple[str, ...]]:
    """Start a keeper; gives the id of its container, whose program has started, and warnings. Raises: as `Container` and `popen`; NameInUseError."""
    import pickle

    try:
        raw = pickle.dumps(wishes)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UsageError(f"a container of another process cannot be given what belongs to this one: {error}") from None
    if len(raw) > MAX_WISHES:
        raise UsageError(f"what is said of the container takes {len(raw)} bytes; {MAX_WISHES} are the most")
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _spawn(theirs.fileno())
        try:
            ours.sendall(LENGTH.pack(len(raw)) + raw)
            answer = _receive_all(ours)
        except OSError:
            answer = b""
    if not answer:
        raise BrokenError("the keeper of the container ended before it had started anything")
    message = decode(answer)
    if "error" in message:
        raise to_error(message["error"])
    return str(message["ok"]["id"]), tuple(map(str, message["ok"]["warnings"]))


def _spawn(fd: int) -> None:
    import subprocess

    if not sys.executable:
        raise UnsupportedError("this Python does not know its own program", feature="sys.executable", remedy="use the command `sandbox run -d`")
    home = os.path.dirname(os.path.dirname(os.path.abspath(sandbox.__file__)))
    path = [home, *(entry for entry in sys.path if entry.startswith("/") and entry != home)]
    command = [sys.executable, "-P", "-c", _CODE, str(fd), json.dumps(path)]
    env = {name: value for name, value in os.environ.items() if name in _NEEDED or name.startswith(_NEEDED_KINDS)}
    null = subprocess.DEVNULL
    subprocess.Popen(command, pass_fds=(fd,), env=env, stdin=null, stdout=null, stderr=null).wait()


def _receive_all(channel: socket.socket) -> bytes:
    found = bytearray()
    while data := channel.recv(65536):
        found += data
    return bytes(found)
