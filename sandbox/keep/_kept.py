"""`Kept`: a container that outlives the command that started it, from the outside; and how one is started, found and listed."""

from __future__ import annotations

import contextlib
import os
import random
import signal as signals
import socket
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, cast

from attrs import field, frozen

from sandbox import BrokenError, ContainerNotFoundError, NameInUseError, ProtocolError, UsageError
from sandbox.keep._attached import Attachment
from sandbox.keep._events import Event
from sandbox.keep._launch import Wishes, launch
from sandbox.keep._log import LEAST, LogReader, Record, tail
from sandbox.keep._record import SHORT_ID, Config, State, to_name, to_result
from sandbox.keep._store import ContainerStore, Place
from sandbox.keep._waiting import Line, connect, end_keeper
from sandbox.keep._wire import encode, request, to_error

if TYPE_CHECKING:
    from sandbox import Result
    from sandbox.image import Healthcheck

STOP_S: Final = 10.0
LOG_SIZE: Final = 16 << 20
MOST_LOG: Final = 1 << 40
_TRIES: Final = 20
_OF_THIS_PROCESS: Final = frozenset(("net", "name", "dns_search", "publish_all"))
_FIRST: Final = "able bold brave calm clear eager fair fast glad grand keen kind lively merry neat proud quick quiet ready sharp steady swift wise"
_SECOND: Final = "badger beaver bison crane crow deer dove eagle falcon finch fox hare hawk heron ibis jay lark lynx mole newt otter owl raven wren"


def start(
    argv: Sequence[Any] | None = None,
    image: str | None = None,
    *,
    name: str | None = None,
    remove: bool = False,
    labels: Mapping[str, str] | None = None,
    network: str | Sequence[str] = (),
    ports: Iterable[int | str] = (),
    dns: Iterable[str] = (),
    extra_hosts: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    tty: bool = False,
    interactive: bool = False,
    restart: str = "no",
    entrypoint: str | None = None,
    log_size: int = LOG_SIZE,
    health: Healthcheck | None = None,
    timeout: float | None = None,
    cpu_time: float | None = None,
    **options: Any,  # noqa: ANN401 - Container's
) -> Kept:
    """Start a program in a container that outlives this process; returns once it runs.

    argv: the program; None: what the image says. name: None: one is made up. remove: the container, at the end of its program.
    network: ``"host"``, or names of kept networks, as of ``sandbox run --network``; none with *ports*: one for
        this container, which reaches outside. ports, dns, extra_hosts: of `Container`.
    links: aliases, and the names of the containers that they mean.
    health: a check, in place of the image's HEALTHCHECK; without a test, only what it says of times is; ``Healthcheck(("NONE",))`` is none.
    tty: the program has a terminal, whose output is the log. interactive: it has an input, for those who `attach`.
    restart: whether it is run again when it has ended by itself: ``"on-failure"``, ``"on-failure:5"``, ``"always"``, ``"unless-stopped"``.
    log_size: bytes of the log; the oldest go first. timeout, cpu_time: of the program.
    options: the others of `Container`: values that another process can be given.

    Raises: as `Container` and `Container.popen`; NameInUseError.
    """
    unfit = _OF_THIS_PROCESS & set(options)
    if isinstance(share := options.get("share"), Mapping) and any(whose != "host" for whose in cast("Mapping[object, object]", share).values()):
        raise UsageError("share: belongs to this process, and the container does not; `sandbox run -d --ipc container:NAME` takes one by its name")
    if unfit:
        raise UsageError(f"{min(unfit)}: belongs to this process, and the container does not; networks are given by name: network='NAME'")
    words: dict[str, Any] = {
        "network": [network] if isinstance(network, str) else list(network),
        "publish": [str(port) for port in ports],
        "dns": list(dns),
        "add_host": [f"{name}={address}" for name, address in (extra_hosts or {}).items()],
        "link": [f"{other}:{alias}" for alias, other in (links or {}).items()],
    }
    program = None if argv is None else tuple(argv)
    found, _ = start_wishes(
        name,
        program=program, container={"image": image, **options}, options={"timeout": timeout, "cpu_time": cpu_time}, network=words,
        labels=dict(labels or {}), entrypoint=entrypoint, remove=remove, tty=tty, interactive=interactive, restart=restart, log_size=log_size,
        health=health,
    )
    return found


def start_wishes(name: str | None, *, log_size: int = LOG_SIZE, **wishes: Any) -> tuple[Kept, tuple[str, ...]]:  # noqa: ANN401 - of Wishes
    """As `start`, for the command line: the container, and warnings."""
    if isinstance(log_size, bool) or not isinstance(log_size, int) or not LEAST <= log_size <= MOST_LOG:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"log_size: {log_size!r} is no size of a log; give {LEAST} bytes or more")
    store = ContainerStore()
    if name is not None:
        ident, warnings = launch(Wishes(store=store.path, name=to_name(name), log_size=log_size, **wishes))
        return Kept(ident, store), warnings
    for _ in range(_TRIES):
        made_up = f"{random.choice(_FIRST.split())}_{random.choice(_SECOND.split())}{random.randrange(100)}"  # noqa: S311 - a name, no secret
        with contextlib.suppress(NameInUseError):
            ident, warnings = launch(Wishes(store=store.path, name=made_up, log_size=log_size, **wishes))
            return Kept(ident, store), warnings
    raise UsageError("name: give one; those that were made up are taken")


def find(text: str) -> Kept:
    """Find a container by its name, its id, or the first digits of that. Raises: ContainerNotFoundError."""
    store = ContainerStore()
    with store.open(text) as place:
        return Kept(place.id, store)


def containers() -> list[Kept]:
    """All of this user's that outlive their commands, the newest first; those whose documents are damaged come last."""
    store = ContainerStore()
    found: list[tuple[float, Kept]] = []
    for ident in store.ids():
        kept = Kept(ident, store)
        try:
            found.append((kept.config.created, kept))
        except ContainerNotFoundError:
            continue
        except UsageError:
            found.append((0.0, kept))
    return [kept for _, kept in sorted(found, key=lambda pair: -pair[0])]


def events(since: float | None = None, until: float | None = None, *, follow: bool = True) -> Iterator[Event]:
    """What happens to this user's containers that outlive their commands, and happened: as far back as the bounded log of that reaches.

    since, until: seconds since 1970; None: from now on; without end. *follow*: wait for what comes, until *until*.
    A keeper that is killed tells nobody.
    """
    return ContainerStore().events(since, until, ends=not follow)


@frozen
class Kept:
    """A container that outlives the command that started it. Nothing is held open: each call asks its keeper anew. Safe for any number of threads.

    Every method raises ContainerNotFoundError when it is not there any more, and BrokenError when its keeper is dead.
    """

    id: str
    _store: ContainerStore = field(factory=ContainerStore, repr=False)

    # ---- What it is ----

    @property
    def config(self) -> Config:
        """What it is, as it was written down. Raises: UsageError: that is damaged."""
        with self._place() as place:
            return place.config()

    @property
    def state(self) -> State:
        """What has become of it; ``status`` is "dead" when its keeper is. Raises: as `config`."""
        from attrs import evolve

        with self._place() as place:
            state = place.state()
            return state if place.is_kept else evolve(state, status="dead", init=0, error=state.error or "its keeper has ended")

    @property
    def name(self) -> str:
        """Its name."""
        return self.config.name

    @property
    def status(self) -> str:
        """``"created"``, ``"running"``, ``"paused"``, ``"restarting"``, ``"exited"`` or ``"dead"``."""
        return self.state.status

    @property
    def result(self) -> Result | None:
        """Of the last run of its program that has ended, without output."""
        found = self.state.result
        return None if found is None else to_result(found)

    def _place(self) -> Place:
        return self._store.open(self.id)

    # ---- Its life ----

    def start(self) -> None:
        """Run its program again; nothing happens while it runs. Raises: UsageError: it is paused."""
        self._ask("start")

    def stop(self, timeout: float = STOP_S) -> None:
        """End its programs: the image's STOPSIGNAL first, SIGKILL after *timeout* seconds. It stays, with all that was written."""
        self._ask("stop", timeout=_to_timeout(timeout))

    def restart(self, timeout: float = STOP_S) -> None:
        """Stop and start."""
        self._ask("restart", timeout=_to_timeout(timeout))

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send a signal to its program. Raises: UsageError: it does not run."""
        if isinstance(signal, bool) or not isinstance(signal, int) or not 0 < signal < 65:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"signal: {signal!r} is no signal")
        self._ask("kill", signal=int(signal))

    def pause(self) -> None:
        """Freeze its programs. Raises: UsageError: it does not run, or has no control group."""
        self._ask("pause")

    def resume(self) -> None:
        """Let them go on."""
        self._ask("resume")

    def wait(self) -> Result:
        """Wait for the end of its program; gives the result at once when that has ended."""
        return to_result(self._ask("wait")["result"])

    def update(self, *, restart: str = "", memory: int | str = "", cpus: float = 0.0, pids: int = 0) -> None:
        """Change its restart policy, and limits that it has. Raises: UsageError: it has none of that kind; as `Container.update`."""
        from sandbox import Limits

        wanted = Limits(memory=memory or None, cpus=cpus or None, pids=pids or None)
        self._ask("update", restart=restart, memory=str(wanted.memory or ""), cpus=float(wanted.cpus or 0), pids=wanted.pids or 0)

    def rename(self, name: str) -> None:
        """Give it another name. Raises: NameInUseError."""
        self._ask("rename", name=to_name(name))

    def remove(self, *, force: bool = False) -> None:
        """Remove it, and all that was written in it. *force*: also when it runs, and when its keeper does not answer: that is killed.

        A dead one is swept away. Raises: UsageError: it runs; BrokenError: its keeper does not answer.
        """
        try:
            self._ask("remove", force=bool(force))
        except BrokenError:
            with contextlib.suppress(ContainerNotFoundError), self._place() as place:
                if place.is_kept and not force:
                    raise
                end_keeper(place)
                self._store.discard(place, is_keeper=False)

    # ---- Programs ----

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
    ) -> Result:
        """Run one more program in it, to its end. *stdin*, *stdout*, *stderr*: descriptors; None: /dev/null. Without its caller it is killed."""
        with contextlib.ExitStack() as stack:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, null)
            fds = tuple(null if fd is None else fd for fd in (stdin, stdout, stderr))
            with self.popen(argv, fds=fds, env=env, cwd=cwd, user=user) as process:
                return process.wait()

    def popen(
        self,
        argv: Sequence[str],
        *,
        fds: tuple[int, ...] = (),
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        size: tuple[int, int] | None = None,
        detach: bool = False,
    ) -> Execution:
        """Start one more program. *fds*: its three streams; or *size*: of a terminal for it; or *detach*: it has neither, and its caller may go.

        What runs in the container can hand descriptors on, and keep them when the program has ended: give pipes, not a terminal or files of yours.
        """
        if (len(fds) == 3) + (size is not None) + bool(detach) != 1:
            raise UsageError("popen: give three descriptors, or the size of a terminal, or detach=True")
        rows, columns = size or (0, 0)
        wanted = request(
            "exec", argv=list(argv), env=dict(env or {}), cwd=cwd, user=user, tty=size is not None, detach=bool(detach), rows=rows, columns=columns
        )
        client = self._connect()
        try:
            socket.send_fds(client, [encode(wanted)], fds, socket.MSG_NOSIGNAL)
            line = self._line(client)
            answer, got = line.receive(1)
            answer_of(answer)
        except BaseException:
            client.close()
            raise
        return Execution(client, line, got[0] if got else None)

    def attach(self, *, start: bool = False) -> Attachment:
        """What its program writes from now on, and what it reads. *start*: start it, if it does not run. Raises: UsageError: it does not run."""
        place = self._place()
        try:
            line = self._line(connect(place))
        except BaseException:
            place.close()
            raise
        return Attachment.begin(line, place, encode(request("attach", start=bool(start))), answer_of)

    # ---- Its output and its files ----

    def logs(self) -> bytes:
        """What its program has written to both streams, as far as the log reaches back. See `records` for times and streams."""
        return b"".join(record.data for record in self.records())

    def records(self, *, follow: bool = False, last: int | None = None) -> Generator[Record]:
        """The log: ``.time_ns``, ``.stream`` (1, 2) and ``.data`` of each piece. *follow*: go on until the program ends.

        *last*: begin with so many lines of what is there. Raises: UsageError: it is damaged.
        """
        with self._place() as place:
            reader = LogReader(place.fd)
            try:
                for turn in self._turns(follow=follow):
                    found = reader.read(to_now=not turn)  # who writes all the time is not to keep us for ever
                    yield from found if turn or last is None else tail(found, last)
            except ValueError as error:
                raise UsageError(f"container {self.id[:SHORT_ID]}: {error}") from error
            finally:
                reader.close()

    def _turns(self, *, follow: bool) -> Iterator[int]:
        """Each time that the log is to be looked at."""
        if not follow:
            yield 0
            return
        turn, silence = 0, None
        try:
            with self._connect() as client:
                client.send(encode(request("follow")))
                line = self._line(client)
                while (message := line.receive()[0]) is not None and "log" in message:
                    yield turn
                    turn += 1
                if message is not None:
                    answer_of(message)
        except BrokenError as error:
            silence = error
        yield turn
        if silence is not None and self.status != "dead":  # a dead one writes no more
            raise silence

    def copy_in(self, source: str, target: str) -> None:
        """Copy a file or directory of the host into it; see `Container.copy_in`."""
        self._ask("copy_in", source=_of_host(source, what="copy_in"), target=target)

    def copy_out(self, source: str, target: str) -> None:
        """Copy a file or directory out of it; see `Container.copy_out`."""
        self._ask("copy_out", source=source, target=_of_host(target, what="copy_out"))

    def commit(self, name: str = "", *, author: str = "", message: str = "", changes: Iterable[str] = (), pause: bool = True) -> str:
        """Make an image of what it has become; gives its id. See `Container.commit`."""
        return str(self._ask("commit", name=name, author=author, message=message, changes=list(changes), pause=pause)["id"])

    def diff(self) -> list[tuple[str, str]]:
        """What has changed in its image's files: kind ("A", "C", "D") and path of each."""
        return [(str(kind), str(path)) for kind, path in self._ask("diff")["more"]]

    def export(self, target: int) -> None:
        """Write its root as a tar to a descriptor; see `Container.export`."""
        self._ask("export", fds=(target,))

    # ---- Its networks ----

    def connect(
        self,
        network: str,
        *,
        address: str = "",
        address6: str = "",
        mac: str = "",
        aliases: Iterable[str] = (),
        links: Mapping[str, str] | None = None,
    ) -> None:
        """Put it into one more network that is kept; see `Container.connect`, and `Join` for the rest."""
        self._ask("connect", network=network, address=address, address6=address6, mac=mac, aliases=list(aliases), links=dict(links or {}))

    def disconnect(self, network: str) -> None:
        """Take it out of a network."""
        self._ask("disconnect", network=network)

    def stats(self) -> dict[str, Any]:
        """What its programs use, by the names of `sandbox.cg.Stats`. Raises: UsageError: it has no control group."""
        return self._ask("stats")

    # ---- Asking ----

    def _connect(self) -> socket.socket:
        with self._place() as place:
            return connect(place)

    def _line(self, client: socket.socket) -> Line:
        return Line(client, self._connect, self.id)

    def _ask(self, verb: str, *, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - of VERBS
        raw = encode(request(verb, **fields))
        more: list[Any] = []
        with self._connect() as client:
            with contextlib.suppress(BrokenPipeError):  # what it said before can be read
                socket.send_fds(client, [raw], fds, socket.MSG_NOSIGNAL)
            line = self._line(client)
            while (message := line.receive()[0]) is not None and "more" in message:
                more += message["more"]
        return {**answer_of(message), **({"more": more} if verb == "diff" else {})}


@frozen(eq=False)
class Execution:
    """A program that was started in a container, beside its own. Closing it kills the program, unless that is detached by then; use ``with``."""

    _client: socket.socket
    _line: Line
    terminal: int | None

    def fileno(self) -> int:
        """A descriptor that becomes readable when the program has ended, or the container; then call `wait`."""
        return self._client.fileno()

    def send_signal(self, signal: int) -> None:
        """Send a signal to the program's first process."""
        with contextlib.suppress(BrokenPipeError):  # it has just ended
            self._client.send(encode({"signal": int(signal)}), socket.MSG_NOSIGNAL)

    def detach(self) -> None:
        """Let it go on without us; what it shows from now on is dropped."""
        with contextlib.suppress(BrokenPipeError):  # it has just ended
            self._client.send(encode({"detach": True}), socket.MSG_NOSIGNAL)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its new size; the program gets SIGWINCH."""
        import fcntl
        import termios

        if self.terminal is None:
            raise UsageError("resize: the program has no terminal")
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait(self) -> Result:
        """Wait for its end. Raises: BrokenError: the container has ended."""
        message, _ = self._line.receive()
        if message is not None and isinstance(message.get("ended"), dict):
            return to_result(message["ended"])
        answer_of(message)
        raise ProtocolError("a keeper's answer makes no sense")

    def close(self) -> None:
        """Let go of it."""
        self._client.close()
        if self.terminal is not None:
            os.close(self.terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def answer_of(message: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a keeper answers. Raises: what it raised."""
    if message is None:
        raise BrokenError("the container's keeper has ended, or was asked by too many at once, before it answered")
    if "error" in message:
        raise to_error(message["error"])
    answer = message.get("ok")
    if not isinstance(answer, dict):
        raise ProtocolError("a keeper's answer makes no sense")
    return cast("dict[str, Any]", answer)


def _of_host(path: str, *, what: str) -> str:
    """For the keeper, which stands elsewhere."""
    if not path:  # a variable of a shell that is not set, say; abspath makes it the directory where we stand
        raise UsageError(f"{what}: the path of the host is empty; give '.' for the working directory")
    return os.path.abspath(path)


def _to_timeout(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"timeout: {value!r} is not a time; give seconds")
    return float(value)
