"""Things that a hostile submission would like to get at, set up so that we notice if it does.

A flag, a random word that stands nowhere else, lies in a file of the host that everybody may read; services of the host give it
away on 127.0.0.1 and on an abstract Unix socket; another run that goes on at the same time, and an earlier one that is over,
left it in their own directories and on their own sockets. `Trap.directions` tells the attacker where all this is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from sandbox import PIPE, Container

# What the other runs do with the flag; "stay" keeps one alive until its standard input is closed.
_OTHER_RUN: Final = """
import socket, sys
flag, name, port, stay = sys.argv[1:]
for path in "/tmp/flag", "/dev/shm/flag":
    with open(path, "w") as file:
        file.write(flag)
unix, inet = socket.socket(socket.AF_UNIX), socket.socket()
unix.bind("\\0" + name), inet.bind(("127.0.0.1", int(port)))
unix.listen(), inet.listen()
print("ready", flush=True)
if stay == "stay":
    sys.stdin.read()
"""


class Trap:
    """The bait, from ``with`` on. *new_box* makes the containers of the other runs: as the attacker's own."""

    def __init__(self, new_box: Callable[[], Container]) -> None:
        self.flag = secrets.token_hex(16)
        self.visitors = 0
        self._new_box = new_box
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack:  # undo what is there, should the rest fail
            self._file = self._host_file()
            name = f"trap-{secrets.token_hex(8)}"
            inet, unix = socket.socket(), socket.socket(socket.AF_UNIX)
            inet.bind(("127.0.0.1", 0))
            unix.bind(f"\0{name}")
            self._serve(inet)
            self._serve(unix)
            port = inet.getsockname()[1]
            self._other_runs(f"{name}-other", port)
            # UDP: "connecting" sends nothing, and works wherever there is a way out. 192.0.2.1 stands for any address (RFC 5737).
            self.directions = (f"file {self._file}\ntcp 127.0.0.1 {port}\nunix {name}\nunix {name}-other\nudp 192.0.2.1 53\n").encode()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def loot(self, output: bytes) -> str:
        """What the attacker got, as far as we can tell without its word; "" for nothing."""
        if self.flag.encode() in output:
            return "it printed the flag"
        return f"{self.visitors} connections to the host" if self.visitors else ""

    def _host_file(self) -> str:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="trap-")))
        directory.chmod(0o755)
        path = directory / "flag"
        path.write_text(self.flag, encoding="ascii")
        path.chmod(0o644)
        return os.fspath(path)

    def _serve(self, listener: socket.socket) -> None:
        """Give the flag to whoever connects, until the trap is closed."""
        listener.listen()
        thread = threading.Thread(target=self._give_away, args=(listener,), daemon=True)
        thread.start()
        self._stack.callback(listener.close)
        self._stack.callback(thread.join)
        self._stack.callback(listener.shutdown, socket.SHUT_RDWR)  # wakes accept; callbacks run last to first

    def _give_away(self, listener: socket.socket) -> None:
        while True:
            try:
                guest, _ = listener.accept()
            except OSError:  # shut down
                return
            self.visitors += 1
            with guest, contextlib.suppress(OSError):  # a guest that hangs up first
                guest.sendall(self.flag.encode())

    def _other_runs(self, name: str, port: int) -> None:
        argv = ["python3", "-I", "-c", _OTHER_RUN, self.flag, name, str(port)]
        with self._new_box() as earlier:
            earlier.exec([*argv, "go"], check=True)
        self.other = self._stack.enter_context(self._new_box())
        run = self.other.popen([*argv, "stay"], stdin=PIPE, stdout=PIPE)
        self._stack.callback(run.close)
        if run.stdout is None or run.stdout.readline() != b"ready\n":
            raise RuntimeError("the other run did not start")
