"""The keeper: a process that holds one container beyond the command that asked for it.

Theory of operation
-------------------
A keeper is an ordinary user of this library. Its main thread waits for the program's output, which it takes into the log, for the program's end,
and for clients; each client is served by a thread of its own (`_service`). What they change is guarded by one lock, that nobody holds while he waits.

A container is `created` until its program has started, then `running` (or `paused`) until that ends, and `exited` from then on, or `restarting`, when
the main thread is to run it again after a pause (`_restarts`): container, writable layer and the keeper stay until somebody removes them, or until
the end of the program with ``remove``. At SIGTERM a keeper stops its container and
ends; what is written down remains, as that of a dead one. However a keeper ends, the launcher's janitor removes the container.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import define, evolve, field

from sandbox import BrokenError, Container, Limits, Result, SandboxError, SetupError, UnsupportedError, UsageError
from sandbox.container import group_from_now_on
from sandbox.keep._health import Health, watch
from sandbox.keep._log import LogWriter
from sandbox.keep._program import Program
from sandbox.keep._record import Config, State, result_of
from sandbox.keep._restarts import Restarts, to_policy
from sandbox.keep._store import ContainerStore, Place

STOP_S: Final = 10.0
LAST_WORDS_S: Final = 2.0  # for answers that are on their way when the keeper ends
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S: Final = 0.05
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_IGNORED: Final = (signal.SIGHUP, signal.SIGPIPE)


@define(eq=False)
class Keeper:
    """One container, its program, and who is told of what becomes of them."""

    store: ContainerStore
    place: Place
    config: Config
    container: Container
    argv: Sequence[Any]
    options: Mapping[str, Any]  # of popen
    strict: bool
    listener: socket.socket
    serve: Callable[[Keeper, socket.socket], None]
    close_networks: Callable[[], None]  # those that were made for it
    state: State = field(factory=State)
    lock: threading.RLock = field(factory=threading.RLock)
    program: Program | None = None
    health: Health | None = None
    restarts: Restarts = field(factory=Restarts)
    stop_signal: int = signal.SIGTERM  # as its image wants to be stopped
    gone: threading.Event = field(factory=threading.Event)
    _log: LogWriter = field(init=False)
    _wake: int = field(init=False)
    _pauses: int = 0
    _began: float = 0.0
    _again: float | None = None  # when to run the program again
    _is_stopped: bool = False  # by somebody: then it is not run again
    _is_ending: bool = False
    _is_leaving: bool = False  # without a word to the store
    _followers: list[socket.socket] = field(factory=list[socket.socket])

    def __attrs_post_init__(self) -> None:
        self._log = LogWriter(self.place.fd, self.config.log_size)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # ---- What clients ask for ----

    def start(self) -> None:
        """Run the program, unless it runs. Raises: as `Container.popen`; UsageError: it is paused."""
        with self.lock:
            self._check_here()
            if self.state.status == "paused":
                raise UsageError(f"container {self.config.name} is paused; unpause it")
            if self.program is not None:
                return
            self.restarts.begin()
            if self.state.status == "restarting":  # now, or not at all
                self._tell(status="exited")
            self._run()
        self.wake()

    def tell(self, action: str, **attributes: object) -> None:
        """Write down what happens, for `sandbox.keep.events`."""
        with contextlib.suppress(OSError):
            self.place.happened(action, self.config, **attributes)

    def _run(self) -> None:
        self._again, self._is_stopped = None, False
        self.container.create()
        with contextlib.suppress(UnsupportedError, SetupError):  # nobody asked for limits
            group_from_now_on(self.container)
        tty, interactive = self.config.tty, self.config.interactive
        self.program = Program.start(self.container, self.argv, self.options, tty=tty, interactive=interactive, strict=self.strict)
        self._began = time.monotonic()
        try:
            self._begin_checks(self.program)
        except BaseException:  # no thread is to be had: the main thread sees its end
            self._is_stopped = True
            self.program.process.kill()
            self.wake()
            raise
        self._tell(status="running", started=time.time(), finished=0.0, runs=self.state.runs + 1, error="", restarts=self.restarts.count)
        self.tell("start")

    def _begin_checks(self, program: Program) -> None:
        if self.health is None:
            return
        health = self.health
        health.begin()

        def turn() -> object:
            with self.lock:
                return self._pauses if self.state.status == "running" else None

        def tell(before: object, outcome: Mapping[str, Any], since_start: float) -> bool:
            with self.lock:
                if self.program is not program:
                    return False
                if turn() == before:  # what stood still in the meantime says nothing
                    was = health.status
                    health.add(outcome, since_start=since_start)
                    self._tell()
                    if health.status != was:
                        self.tell(f"health_status: {health.status}")
            return True

        watch(self.container, health, program.watch(), turn, tell)

    def stop(self, timeout: float) -> None:
        """End the program as its image wants it, and wait until the state says so."""
        with self.lock:
            self._check_here()
            self._is_stopped, self._again = True, None
            watch = None if self.program is None else self.program.watch()
            if self.state.status == "paused":
                self.pause(is_paused=False)
            if self.state.status == "restarting":
                self._tell(status="exited")
        if watch is None:
            return
        try:
            self.container.stop(max(timeout, 0.001))
            wait_for(watch, None)
        finally:
            os.close(watch)
        self.tell("stop")

    def kill(self, number: int) -> None:
        """Send a signal to the program's first process; SIGKILL ends all of it. What is sent to stop it keeps it from being restarted, or paused."""
        with self.lock:
            process = self.running().process
            is_to_end = number in (signal.SIGKILL, self.stop_signal)
            self._is_stopped = self._is_stopped or is_to_end
            if number == signal.SIGKILL:
                process.kill()
            else:
                process.send_signal(number)
            self.tell("kill", signal=number)
            if is_to_end and self.state.status == "paused":  # what the freezer of v1 has frozen does not die
                self.pause(is_paused=False)

    def pause(self, *, is_paused: bool) -> None:
        """Freeze the program, or let it go on. Raises: UsageError."""
        with self.lock:
            self.running()
            if is_paused == (self.state.status == "paused"):
                raise UsageError(f"the container is {'already paused' if is_paused else 'not paused'}")
            if is_paused:
                try:
                    self.container.pause()
                except BaseException:  # some stand still already
                    with contextlib.suppress(SandboxError, OSError):
                        self.container.resume()
                    raise
            else:
                self.container.resume()
            self._pauses += is_paused
            self._tell(status="paused" if is_paused else "running")
            self.tell("pause" if is_paused else "unpause")

    def running(self) -> Program:
        """The run that goes on; the caller has the lock. Raises: UsageError."""
        self._check_here()
        if self.state.status == "restarting":
            raise UsageError(f"container {self.config.name} is restarting; wait until it runs")
        if self.program is None:
            raise UsageError(f"container {self.config.name} is not running; start it first")
        return self.program

    def attachable(self) -> Program:
        """The run that goes on, for one who wants to be attached to it; the caller has the lock. Raises: UsageError."""
        if self.program is None and not self._is_ending and self.state.status not in ("dead", "restarting"):
            raise UsageError("you cannot attach to a stopped container, start it first")
        if self.state.status == "paused":
            raise UsageError("you cannot attach to a paused container, unpause it first")
        return self.running()

    def remove(self, *, force: bool) -> None:
        """Have the container removed; the caller waits for `gone`. Raises: UsageError: it runs."""
        with self.lock:
            if not force and (self.program is not None or self.state.status == "restarting"):
                raise UsageError(f"container {self.config.name} is {self.state.status}; stop it first, or remove it with force")
            self._is_ending = True
        self.wake()

    def rename(self, name: str) -> None:
        """Give it another name, beyond its networks, where it keeps the old one. Raises: NameInUseError."""
        with self.lock:
            self._check_here()
            old = self.config.name
            self.config = self.store.rename(self.place, name)
            self.tell("rename", oldName=old)

    def update(self, restart: str | None, limits: Mapping[str, Any]) -> None:
        """Change its policy and its limits, and write that down. Raises: as `Container.update`; UsageError."""
        policy = None if restart is None else to_policy(restart)
        wanted = Limits(**limits)
        changed = {name: getattr(wanted, name) for name in limits}
        with self.lock:
            self._check_here()
            if self.config.remove and policy is not None and policy.name != "no":
                raise UsageError("conflicting options: cannot specify both --restart and --rm")
            if limits:
                self.container.update(wanted)
            restart = self.config.restart if policy is None else str(policy)
            self.config = evolve(self.config, options={**self.config.options, **changed}, restart=restart)
            self.place.write(self.config)
            if policy is not None:
                self.restarts.policy = policy
            if self.restarts.policy.name == "no" and self._again is not None:
                self._again = None
                self._tell(status="exited")
        self.tell("update")

    def follow(self, client: socket.socket) -> int | None:
        """Tell *client*, which is non-blocking, of each addition to the log; gives what hangs up at the end of the run, None when nothing runs."""
        with self.lock:
            if self.program is None:
                return None
            self._followers.append(client)
            return self.program.watch()

    def unfollow(self, client: socket.socket) -> None:
        """Tell it no more."""
        with self.lock, contextlib.suppress(ValueError):
            self._followers.remove(client)

    def changed(self) -> None:
        """Write down where it is in its networks."""
        with self.lock:
            self._tell()

    def wake(self) -> None:
        """Have the main thread look again."""
        os.eventfd_write(self._wake, 1)

    def _check_here(self) -> None:
        if self._is_ending:
            raise UsageError(f"container {self.config.name} is being removed")
        if self.state.status == "dead":
            raise BrokenError(f"container {self.config.name} is dead: {self.state.error}; remove it")

    def _tell(self, **changes: Any) -> None:  # noqa: ANN401 - of State
        with contextlib.suppress(SandboxError):
            if self.container.is_running:
                changes |= {"init": self.container.pid, "networks": networks_of(self.container), "ports": ports_of(self.container)}
        if self.health is not None:
            changes["health"] = self.health.document()
        self.state = evolve(self.state, **changes)
        with contextlib.suppress(OSError):  # no room: the next change is written down again
            self.place.write(self.state)

    # ---- The main thread ----

    def run(self) -> None:
        """Keep the container until it is to be removed, or a signal says so; then end it."""
        reader = self._take_signals()
        self.listener.setblocking(False)
        while not self._is_ending:
            poll = select.poll()
            for fd in (self.listener.fileno(), self._wake, reader):
                poll.register(fd, select.POLLIN)
            with self.lock:
                program = self.program
                mine = {} if program is None else dict.fromkeys([program.process.fileno(), *program.streams], program)
                pause_ms = None if self._again is None else max(self._again - time.monotonic(), 0.0) * 1000
            for fd in mine:
                poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(pause_ms)}
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            if reader in ready:
                self._leave(reader)
            if self.listener.fileno() in ready:
                self._accept()
            if program is not None:
                self._move(program, ready)
            else:
                self._run_again()
        self._end()

    def _take_signals(self) -> int:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        os.set_blocking(reader, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, lambda _number, _frame: None)
        return reader

    def _leave(self, reader: int) -> None:
        """A signal wants us to end: stop the program, in a thread as the rest goes on meanwhile."""
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 64)
        if not self._is_leaving:
            self._is_leaving = True
            threading.Thread(target=self._stop_and_end, daemon=True).start()

    def _stop_and_end(self) -> None:
        with contextlib.suppress(SandboxError, OSError):
            self.stop(STOP_S)
        with self.lock:
            self._is_ending = True
        self.wake()

    def _accept(self) -> None:
        try:
            client, _ = self.listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:  # until then the client waits, and so do we, without asking again and again
                time.sleep(_PAUSE_S)
            return
        with contextlib.suppress(OSError):
            self.serve(self, client)

    def _move(self, program: Program, ready: set[int]) -> None:
        came = [program.move(fd, self._log) for fd in tuple(program.streams) if fd in ready]
        if any(came):
            self._notify()
        if program.process.fileno() not in ready:
            return
        try:
            with self.lock:
                result = program.process.wait(0)
        except TimeoutError:
            return
        except SandboxError as error:  # its init has ended, or makes no sense any more
            self._ended(program, None, error)
            return
        self._ended(program, result, None)

    def _notify(self) -> None:
        with self.lock:
            for client in self._followers:
                with contextlib.suppress(OSError):  # it does not read: it knows already that there is more
                    client.send(b'{"log":1}', socket.MSG_NOSIGNAL)

    def _ended(self, program: Program, result: Result | None, error: SandboxError | None) -> None:
        """The program has ended: so does everything else in the container, which stays."""
        with self.lock, contextlib.suppress(SandboxError, OSError):
            if self.state.status == "paused":
                self.container.resume()
            self.container.kill()  # before the rest of the output is taken: who stays behind might write for ever
        program.drain(self._log, LAST_WORDS_S)
        self._notify()
        with self.lock:
            self.program = None
            if self.health is not None:
                self.health.status = "unhealthy"  # what does not run is not well, says Docker
            words: dict[str, Any] = {"status": "exited", "result": None if result is None else result_of(result)}
            self._is_ending = self._is_ending or self.config.remove or error is not None
            if error is not None:
                words = {"status": "dead", "error": str(error)}
            elif self._is_due(failed=result is None or result.exit_code != 0, ran_s=time.monotonic() - self._began):
                words["status"] = "restarting"
            self._tell(finished=time.time(), restarts=self.restarts.count, **words)
            self._tell_end(result)
            self._is_leaving = self._is_leaving or error is not None
            with contextlib.suppress(SandboxError, OSError):
                program.close()
            program.forget()

    def _tell_end(self, result: Result | None) -> None:
        if result is not None and result.oom_killed:
            self.tell("oom")
        code = {} if result is None else {"exitCode": result.shell_code}
        self.tell("die", **code, execDuration=int(time.monotonic() - self._began))

    def _is_due(self, *, failed: bool, ran_s: float) -> bool:
        """Whether it is to be run again; then `_again` says when."""
        pause = None if self._is_stopped or self._is_ending or self._is_leaving else self.restarts.after(failed=failed, ran_s=ran_s)
        self._again = None if pause is None else time.monotonic() + pause
        return pause is not None

    def _run_again(self) -> None:
        """If it is time to. What cannot be started is a run that has failed."""
        with self.lock:
            if self._again is None or time.monotonic() < self._again:
                return
            try:
                self._run()
            except (SandboxError, OSError, RuntimeError) as error:
                if self.program is None:  # else the main thread sees its end
                    status = "restarting" if self._is_due(failed=True, ran_s=0.0) else "exited"
                    self._tell(status=status, error=str(error), restarts=self.restarts.count)

    def _end(self) -> None:
        """Remove the container, and what is written down of it if it is to go."""
        if self.program is not None:  # removed by force: those who wait for its end learn it
            self._kill(self.program)
        for close in (self.container.close, self.close_networks):
            with contextlib.suppress(SandboxError, OSError):
                close()
        if self._is_leaving and not self.config.remove:
            with self.lock:
                self._tell(status="dead", error=self.state.error or "its keeper was told to end", init=0)
        else:
            with contextlib.suppress(SandboxError, OSError):
                self.store.discard(self.place, is_keeper=True)
        self.listener.close()
        self.gone.set()

    def _kill(self, program: Program) -> None:
        with contextlib.suppress(SandboxError, OSError, TimeoutError):
            if self.state.status == "paused":
                self.container.resume()
            program.process.kill()
            self._ended(program, program.process.wait(LAST_WORDS_S), None)


def networks_of(container: Container) -> dict[str, Any]:
    """Its place in each of its networks, by Docker's names."""
    found: dict[str, Any] = {}
    for name, place in container.endpoints.items():
        found[name] = {"IPAddress": place.address, "MacAddress": place.mac, "GlobalIPv6Address": place.address6 or "", "Aliases": list(place.aliases)}
    return found


def ports_of(container: Container) -> dict[str, Any]:
    """Where the host leads to its ports, by Docker's names."""
    return {name: [{"HostIp": port.address, "HostPort": str(port.port)} for port in ports] for name, ports in container.ports.items()}


def wait_for(fd: int, timeout: float | None) -> bool:
    """Wait until a descriptor is readable, or hung up; False: the time is over."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))
