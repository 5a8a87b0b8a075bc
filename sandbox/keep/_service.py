"""One client of a keeper, served by a thread of its own: its request is checked, carried out, and answered.

Who may ask is the keeper's own user, and root; the kernel says who it is (SO_PEERCRED). A client has REQUEST_S seconds to say what it wants, and
each answer as long to be taken: whoever is late is dropped. So a client that hangs costs a thread for a moment, and nobody waits for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from sandbox import BrokenError, Process, ProtocolError, UsageError
from sandbox.keep._keeper import LAST_WORDS_S, Keeper
from sandbox.keep._log import CHUNK
from sandbox.keep._record import result_of
from sandbox.keep._wire import MAX_FDS, MAX_MESSAGE, Request, decode, encode, error_of, parts, to_request

REQUEST_S: Final = 10.0
MOST: Final = 64  # clients at once that may take long: some eight descriptors each, of the 1,024 that a process usually may have
RESERVE: Final = 16  # beside them, so that a container can always be stopped and removed
_LONG: Final = frozenset({"exec", "wait", "follow", "attach", "export", "copy_in", "copy_out", "commit", "diff"})
_CREDENTIALS: Final = struct.Struct("iII")
Answer = Mapping[str, Any] | None  # None: it was answered already


class Service:
    """The clients of one keeper."""

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()
        self._long = threading.BoundedSemaphore(MOST)

    def __call__(self, keeper: Keeper, client: socket.socket) -> None:
        """Serve a client that has just connected; does not block."""
        if not _may_ask(client) or len(self._threads) >= MOST + RESERVE:
            client.close()
            return
        thread = threading.Thread(target=self._serve, args=(keeper, client), daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads are to be had: that is the client's to bear, not the container's
            self._threads.discard(thread)
            client.close()

    def finish(self) -> None:
        """Give answers that are on their way a moment."""
        deadline = time.monotonic() + LAST_WORDS_S
        for thread in tuple(self._threads):
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _serve(self, keeper: Keeper, client: socket.socket) -> None:
        fds: list[int] = []
        try:
            with client:
                client.settimeout(REQUEST_S)
                self._answer(keeper, client, fds)
        except (OSError, ProtocolError):  # it has gone, or talks nonsense: nobody is there to be told
            pass
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
            self._threads.discard(threading.current_thread())

    def _answer(self, keeper: Keeper, client: socket.socket, fds: list[int]) -> None:
        raw, got, flags, _ = socket.recv_fds(client, MAX_MESSAGE + 1, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        fds += got
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("a message is too long")
        if not raw:
            return
        try:
            answer = self._done(keeper, client, to_request(decode(raw), fds=len(fds)), fds)
            message = None if answer is None else encode({"ok": answer})
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the client's to know, and keeps nobody else
            message = encode({"error": error_of(error)})
        if message is not None:
            client.send(message, socket.MSG_NOSIGNAL)

    def _done(self, keeper: Keeper, client: socket.socket, request: Request, fds: list[int]) -> Answer:
        doer = _DOERS[request.verb]
        if request.verb not in _LONG:
            return doer(keeper, client, request, fds)
        if not self._long.acquire(blocking=False):
            raise UsageError(f"container {keeper.config.name} is busy with {MOST} clients; end some, or stop it")
        try:
            return doer(keeper, client, request, fds)
        finally:
            self._long.release()


def _may_ask(client: socket.socket) -> bool:
    _, uid, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid in (0, os.geteuid())


def _send(client: socket.socket, message: Mapping[str, Any], fds: Iterable[int] = ()) -> None:
    socket.send_fds(client, [encode(message)], [*fds], socket.MSG_NOSIGNAL)


# ---- Its life ----


def _stop(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    keeper.stop(request.fields["timeout"])
    return {}


def _start(keeper: Keeper, _client: socket.socket, _request: Request, _fds: list[int]) -> Answer:
    keeper.start()
    return {}


def _restart(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    if keeper.config.remove and keeper.program is not None:
        raise UsageError(f"container {keeper.config.name} is removed when it stops (--rm); it cannot be restarted")
    keeper.stop(request.fields["timeout"])
    keeper.start()
    keeper.tell("restart")
    return {}


def _kill(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    keeper.kill(request.fields["signal"])
    return {}


def _ping(_keeper: Keeper, _client: socket.socket, _request: Request, _fds: list[int]) -> Answer:
    return {}


def _pause(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    keeper.pause(is_paused=request.verb == "pause")
    return {}


def _remove(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    keeper.remove(force=request.fields["force"])
    keeper.gone.wait()
    return {}


def _rename(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    keeper.rename(request.fields["name"])
    return {}


def _wait(keeper: Keeper, client: socket.socket, _request: Request, _fds: list[int]) -> Answer:
    with keeper.lock:
        watch = None if keeper.program is None else keeper.program.watch()
    if watch is not None:
        try:
            if not _await_end(client, watch):
                return None
        finally:
            os.close(watch)
    with keeper.lock:
        if keeper.state.result is None:
            raise BrokenError(f"container {keeper.config.name} has no result: {keeper.state.error or 'it has not run'}")
        return {"result": keeper.state.result}


def _follow(keeper: Keeper, client: socket.socket, _request: Request, _fds: list[int]) -> Answer:
    with client.dup() as told:
        told.setblocking(False)  # it waits for nobody, while *client* has a timeout of its own
        watch = keeper.follow(told)
        if watch is None:
            return {}
        try:
            _send(client, {"log": 1})
            return {} if _await_end(client, watch) else None
        finally:
            keeper.unfollow(told)
            os.close(watch)


def _attach(keeper: Keeper, client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(client.dup())
        told.setblocking(False)
        with keeper.lock:  # its end is nobody's business before we follow it
            if request.fields["start"]:
                keeper.start()
            fd = keeper.attachable().dup_input()
            if fd is not None:
                stack.callback(os.close, fd)
            # Before we follow: then the answer comes first. There is room for it, and for the next one.
            _send(told, {"ok": {"tty": keeper.config.tty, "interactive": keeper.config.interactive}}, () if fd is None else (fd,))
            _send(told, {"log": 1})
            watch = keeper.follow(told)
        keeper.tell("attach")
        if watch is None:
            raise AssertionError("what is attachable runs")
        stack.callback(os.close, watch)
        stack.callback(keeper.unfollow, told)
        if not _await_end(client, watch):
            return None
        with keeper.lock:
            if keeper.state.result is None:
                raise BrokenError(f"container {keeper.config.name} has no result: {keeper.state.error or 'it has ended in some way'}")
            result = keeper.state.result
        _send(client, {"ended": result})
    return None


def _await_end(client: socket.socket, watch: int) -> bool:
    """Wait until *watch* hangs up; False: the client has gone first."""
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    poll.register(client, select.POLLIN)
    return any(fd == watch for fd, _ in poll.poll())


# ---- Programs in it ----


def _exec(keeper: Keeper, client: socket.socket, request: Request, fds: list[int]) -> Answer:
    fields = request.fields
    words: dict[str, Any] = {name: fields[name] or None for name in ("env", "cwd", "user")}
    if fields["tty"]:
        words |= {"tty": True, "size": (fields["rows"], fields["columns"])}
    elif fds:
        words |= dict(zip(("stdin", "stdout", "stderr"), fds, strict=True))
    with keeper.lock:
        keeper.running()
        if keeper.state.status == "paused":
            raise UsageError(f"container {keeper.config.name} is paused; unpause it first")
        process = keeper.container.popen(fields["argv"], **words)
    try:
        while fds:  # the program's now: whoever reads its output waits for the end of all copies
            os.close(fds.pop())
        terminal = () if process.terminal is None or fields["detach"] else (process.terminal,)
        _send(client, {"ok": {"pid": process.pid}}, terminal)
        keeper.tell(f"exec_start: {' '.join(fields['argv'])}")
        if fields["detach"] or not _accompany(client, process):
            client.close()
            _let_run(process)
        result = process.wait()
        keeper.tell("exec_die", exitCode=result.shell_code)
        if client.fileno() >= 0:
            _send(client, {"ended": result_of(result)})
    finally:
        process.close()
    return None


def _accompany(client: socket.socket, process: Process) -> bool:
    """Until the program ends, pass the client's signals on; without the client, kill it. False: it is to go on by itself."""
    poll = select.poll()
    poll.register(client, select.POLLIN)
    poll.register(process.fileno(), select.POLLIN)
    while process.fileno() not in {fd for fd, _ in poll.poll()}:
        raw = client.recv(MAX_MESSAGE)
        if not raw:
            process.kill()
            return True
        message = decode(raw)
        if message == {"detach": True}:
            return False
        number = message.get("signal")
        if type(number) is not int or not 0 < number < 65:
            raise ProtocolError("a message to a program that is no signal")
        process.send_signal(number)
    return True


def _let_run(process: Process) -> None:
    """Wait for its end, and drop what it shows: nobody else reads it."""
    poll = select.poll()
    poll.register(process.fileno(), select.POLLIN)
    terminal = process.terminal
    if terminal is not None:
        os.set_blocking(terminal, False)
        poll.register(terminal, select.POLLIN)
    while process.fileno() not in (ready := {fd for fd, _ in poll.poll()}):
        try:
            if terminal in ready and not os.read(terminal, CHUNK):
                break
        except BlockingIOError:
            continue
        except OSError:  # EIO: all have closed it
            break


# ---- Its files ----


def _commit(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    fields = dict(request.fields)
    image = keeper.container.commit(fields.pop("name") or None, **fields)
    keeper.tell("commit", imageID=image.id)
    return {"id": str(image.id)}


def _diff(keeper: Keeper, client: socket.socket, _request: Request, _fds: list[int]) -> Answer:
    for part in parts([change.kind, change.path] for change in keeper.container.diff()):
        _send(client, part)
    return {}


def _export(keeper: Keeper, _client: socket.socket, _request: Request, fds: list[int]) -> Answer:
    # Who reads a pipe may take as long as he likes: programs do not stand still for him.
    keeper.container.export(fds[0], pause=stat.S_ISREG(os.fstat(fds[0]).st_mode))
    keeper.tell("export")
    return {}


def _copy_in(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    keeper.container.copy_in(request.fields["source"], request.fields["target"])
    return {}


def _copy_out(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    keeper.container.copy_out(request.fields["source"], request.fields["target"])
    return {}


# ---- Its networks ----


def _connect(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    from sandbox import Join, NetworkStore

    fields = request.fields
    network = NetworkStore().open(fields["network"])
    numbers = {name: fields[name] or None for name in ("address", "address6", "mac")}
    keeper.container.connect(Join(network, **numbers, aliases=fields["aliases"], links=fields["links"]))
    keeper.changed()
    return {}


def _disconnect(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    from sandbox import NetworkStore

    keeper.container.disconnect(NetworkStore().open(request.fields["network"]))
    keeper.changed()
    return {}


def _stats(keeper: Keeper, _client: socket.socket, _request: Request, _fds: list[int]) -> Answer:
    from attrs import asdict

    return asdict(keeper.container.stats())


def _update(keeper: Keeper, _client: socket.socket, request: Request, _fds: list[int]) -> Answer:
    fields = {name: value for name, value in request.fields.items() if value}
    keeper.update(fields.pop("restart", None), fields)
    return {}


Doer = Callable[[Keeper, socket.socket, Request, list[int]], Answer]
_DOERS: Final[Mapping[str, Doer]] = {
    "attach": _attach,
    "commit": _commit,
    "connect": _connect,
    "copy_in": _copy_in,
    "copy_out": _copy_out,
    "diff": _diff,
    "disconnect": _disconnect,
    "exec": _exec,
    "export": _export,
    "follow": _follow,
    "kill": _kill,
    "pause": _pause,
    "ping": _ping,
    "remove": _remove,
    "rename": _rename,
    "restart": _restart,
    "resume": _pause,
    "start": _start,
    "stats": _stats,
    "stop": _stop,
    "update": _update,
    "wait": _wait,
}
