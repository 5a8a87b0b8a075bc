"""`aio.Container`: the face of `sandbox.Container`, where what waits is awaited."""

from __future__ import annotations

import asyncio
import os
import select
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import Unpack

from sandbox._arguments import Prepared, one_shot
from sandbox._beginning import START_S
from sandbox._driven import GONE_S, STARTED_S, Driven, DrivenProcess, Launch, complete
from sandbox._files.face import COPY_S, MAX_COPY, MAX_DEPTH, MAX_ENTRIES, MAX_READ, REMOVE_S
from sandbox._files.limits import Progress
from sandbox._pump import GRACE_S
from sandbox._reactor import Reactor
from sandbox._result import Result
from sandbox._run import Text
from sandbox._runs import Run
from sandbox._session import Session
from sandbox._spec import ContainerSpec
from sandbox._types import Argument, Size, StrPath
from sandbox.aio._bridge import bridge, wait_in_bridge
from sandbox.aio._hub import Deaf, Hub, hub
from sandbox.aio._imaged import ImageAccess
from sandbox.aio._monitor import Monitor
from sandbox.aio._options import Bounds, ContainerOptions, ExecOptions, PopenOptions, RunOptions
from sandbox.aio._process import Opening, Process
from sandbox.errors import BrokenError, SandboxError
from sandbox.monitoring import MAX_ROWS

if TYPE_CHECKING:
    from sandbox._networks.capture import Capture
    from sandbox._networks.wishes import Join
    from sandbox.cg import Limits, Stats
    from sandbox.cg.introspect import Introspection
    from sandbox.net import HostPort
    from sandbox.net.counters import NetStats
    from sandbox.net.shape import Shape
    from sandbox.network import Endpoint, Network
    from sandbox.ns import Namespace


class Container(ImageAccess):
    """A container, for asyncio. Takes the arguments of `sandbox.Container`; nothing happens before ``async with``, `create` or `start`.

    It is no loop's own: it may be created in one loop and closed in another. Within one loop, any number of tasks may use it at once;
    when a task that waits for a program or for the container itself is cancelled, that is killed, and its end waited for.

    Raises: as `sandbox.Container`. A forked child must not use its parent's containers (ClosedError).
    """

    driven: Driven  # for this package

    def __init__(self, image: StrPath | None = None, **options: Unpack[ContainerOptions]) -> None:
        given: dict[str, Any] = dict(options)
        if isinstance(given.get("net"), Container):
            given["net"] = given["net"].driven
        if isinstance(given.get("links"), Mapping):
            given["links"] = {alias: other.driven if isinstance(other, Container) else other for alias, other in given["links"].items()}
        if isinstance(given.get("share"), Mapping):
            given["share"] = {kind: whose.driven if isinstance(whose, Container) else whose for kind, whose in given["share"].items()}
        self.driven = Driven(image, wait_in_bridge, **given)
        self._lock = asyncio.Lock()
        self._hub: weakref.ref[Hub] | None = None  # the loop's, which was told to keep its reactor

    def __repr__(self) -> str:
        return f"aio.{self.driven!r}"

    # ---- Life ----

    async def create(self) -> Self:
        """Make the container, with all its walls, but run nothing. Raises: as `sandbox.Container.create`."""
        async with self._lock:
            if self._hub is None or not self.driven.is_open:
                await self._create()
        return self

    async def start(self) -> Self:
        """As `create`: a container without programs costs nothing."""
        return await self.create()

    async def _create(self) -> None:
        hub_ = hub()
        hub_.hold()
        try:
            await _writable(hub_, self.driven.launcher_fd)
            steps = self.driven.create_steps()
            try:
                session = next(steps)
                while True:
                    try:
                        await _until_ready(hub_, session)
                    except BaseException as error:  # noqa: BLE001 - it is thrown
                        await _discard(hub_, session, error)
                        session = steps.throw(error)
                    else:
                        session = next(steps)
            except StopIteration:
                pass
        except BaseException:
            hub_.release()
            raise
        self._hub = weakref.ref(hub_)

    async def close(self) -> None:
        """Kill what runs and remove everything. Waits until it is gone, even when it is cancelled meanwhile; may be called twice."""
        with Deaf() as deaf:
            await deaf.wait(self._lock.acquire)
            try:
                if (session := self.driven.begin_close()) is not None:
                    await _until_gone(hub(), session, deaf)
                self.driven.close()  # it finds nothing to wait for
                held, self._hub = self._hub, None
                if held is not None and (holding := held()) is not None:
                    holding.release()
            finally:
                self._lock.release()

    async def __aenter__(self) -> Self:
        return await self.create()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    @property
    def spec(self) -> ContainerSpec:
        """What it was asked to be."""
        return self.driven.spec

    @property
    def is_running(self) -> bool:
        """Whether it was started and its init lives."""
        return self.driven.is_running

    @property
    def pid(self) -> int:
        """The pid of its init, as this process sees it. For looking only."""
        return self.driven.pid

    @property
    def network(self) -> Network | None:
        """The first `Network` that it was given, if any."""
        return self.driven.network

    @property
    def name(self) -> str | None:
        """By which the others of its networks find it; see `sandbox.Container.name`."""
        return self.driven.name

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """Its place in each of its networks, by the network's name."""
        return self.driven.endpoints

    @property
    def address(self) -> str | None:
        """Its address in the first `Network` that it is in; None: it is in none."""
        return self.driven.address

    @property
    def ports(self) -> Mapping[str, tuple[HostPort, ...]]:
        """Where the host leads to its ports now; see `sandbox.Container.ports`."""
        return self.driven.ports

    async def connect(self, network: Network | Join | str, /) -> Endpoint:
        """Put the running container into one more network; see `sandbox.Container.connect`."""
        return await bridge(partial(self.driven.connect, network))

    async def shape(self, network: Network, shape: Shape | None, /) -> None:
        """Have its packets in *network* pass so from now on; see `sandbox.Container.shape`."""
        await bridge(partial(self.driven.shape, network, shape))

    def capture(
        self,
        path: StrPath,
        network: Network | None = None,
        *,
        snaplen: int = 65535,
        max_bytes: Size = "256M",
        max_packets: int | None = None,
    ) -> Capture:
        """Write its traffic into a file, within ``with``; see `sandbox.Container.capture`."""
        return self.driven.capture(path, network, snaplen=snaplen, max_bytes=max_bytes, max_packets=max_packets)

    async def net_stats(self) -> Mapping[str, NetStats]:
        """What it received and sent in each of its networks; see `sandbox.Container.net_stats`."""
        return await bridge(self.driven.net_stats)

    async def disconnect(self, network: Network, /) -> None:
        """Take the running container out of a network; see `sandbox.Container.disconnect`."""
        await bridge(partial(self.driven.disconnect, network))

    @property
    def degraded(self) -> tuple[str, ...]:
        """What could not be enforced or set up here; see `sandbox.Container.degraded`."""
        return self.driven.degraded

    @property
    def cgroup(self) -> Introspection:
        """The container's control files as typed attributes."""
        return self.driven.cgroup

    def explain(self) -> str:
        """The plan, an operation a line; nothing is started."""
        return self.driven.explain()

    # ---- Programs ----

    async def exec(self, argv: Sequence[Argument], **options: Unpack[ExecOptions]) -> Result:
        """Run a program to its end; arguments, result and errors are those of `sandbox.Container.exec`.

        Cancelled, it kills the program and all that it started, and waits for their end.
        """
        arguments = complete("exec", options)
        prepare = await self._preparing(argv, arguments)
        result = await self._run(lambda reactor, on_end: self.driven.begin(*prepare(), arguments, reactor, on_end))
        return result.check() if arguments["check"] else result

    async def _preparing(self, argv: Sequence[Argument], arguments: dict[str, Any]) -> Callable[[], tuple[Prepared, Text]]:
        """Checks the arguments when it is called, in the program's turn: where many are asked for at once, that adds up."""
        prepare = partial(self.driven.prepare, argv, arguments)
        if not self.driven.needs_files(arguments["user"]):
            return prepare
        found = await bridge(prepare)
        return lambda: found

    async def _run(self, begin: Callable[[Reactor, Callable[[Run], None]], Run]) -> Result:
        hub_, over = hub(), asyncio.Event()
        started: list[Run] = []

        def on_end(run: Run) -> None:
            hub_.forget(run)
            over.set()

        def work() -> None:
            started.append(begin(hub_.reactor, on_end))
            hub_.note(started[0], self)

        try:
            await hub_.start(work, self, is_patient=True)
            await _until_over(started[0], over)
        except asyncio.CancelledError:
            if started:
                await _kill(started[0], over)
            raise
        except BaseException:  # the loop is no more
            if started and not over.is_set():
                started[0].abandon()
                hub_.forget(started[0])
            raise
        finally:
            hub_.tidy()
        return started[0].result

    def popen(self, argv: Sequence[Argument], **options: Unpack[PopenOptions]) -> Opening:
        """Start a program: ``p = await c.popen(...)``, or ``async with c.popen(...) as p``, which ends it. Arguments and errors are those of
        `sandbox.Container.popen`.
        """
        return Opening(partial(self._popen, argv, complete("popen", options)))

    async def _popen(self, argv: Sequence[Argument], arguments: dict[str, Any]) -> Process:
        hub_, prepare = hub(), await self._preparing(argv, arguments)
        started: list[Launch] = []
        try:
            await hub_.start(lambda: started.append(self.driven.launch(*prepare(), arguments)), self)
            await _must_come(hub_, started[0].fileno(), STARTED_S)
        except asyncio.CancelledError:
            if started:
                await _take_back(hub_, started[0])
            raise
        except BaseException:
            if started:
                started[0].release(sound=False)
            raise
        found: DrivenProcess = started[0].process()
        return Process(found)

    async def kill(self, signal: int | None = None) -> None:
        """Kill everything in the container (SIGKILL), or send *signal* to every program in it. The container stays."""
        self.driven.kill(signal)

    async def pause(self) -> None:
        """Freeze every program; see `sandbox.Container.pause`."""
        self.driven.pause()

    async def resume(self) -> None:
        """Let frozen programs go on."""
        self.driven.resume()

    async def stats(self) -> Stats:
        """What all programs use and used."""
        return self.driven.stats()

    async def update(self, limits: Limits) -> None:
        """Set the limits that *limits* names, of all programs together; see `sandbox.Container.update`."""
        self.driven.update(limits)

    def monitor(self, interval: float = 0.05, *, max_rows: int = MAX_ROWS) -> Monitor:
        """A time series of what all programs use, taken within ``async with``; see `Monitor`, and `sandbox.Container.monitor`."""
        return Monitor(self.driven.started, interval, max_rows, self.driven.counters)

    # ---- Files ----

    async def write_bytes(self, path: StrPath, data: bytes, *, mode: int = 0o644, user: int | str | None = None) -> None:
        """Create or replace a file inside; see `sandbox.Container.write_bytes`."""
        await bridge(partial(self.driven.write_bytes, path, data, mode=mode, user=user))

    async def read_bytes(self, path: StrPath, *, max_size: Size = MAX_READ) -> bytes:
        """Read a regular file inside; see `sandbox.Container.read_bytes`."""
        return await bridge(partial(self.driven.read_bytes, path, max_size=max_size))

    async def namespace(self, kind: str) -> Namespace:
        """Open a namespace of its init; see `sandbox.Container.namespace`."""
        return await bridge(partial(self.driven.namespace, kind))

    async def namespaces(self) -> Mapping[str, int]:
        """The namespaces that its init is in; see `sandbox.Container.namespaces`."""
        return await bridge(self.driven.namespaces)

    async def make_dirs(self, path: StrPath, *, user: int | str | None = None) -> None:
        """Make a directory and its parents inside; what exists stays."""
        await bridge(partial(self.driven.make_dirs, path, user=user))

    async def listdir(self, path: StrPath, *, max_entries: int = MAX_ENTRIES) -> list[str]:
        """The names in a directory inside; see `sandbox.Container.listdir`."""
        return await bridge(partial(self.driven.listdir, path, max_entries=max_entries))

    async def stat(self, path: StrPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """What os.stat would say inside; see `sandbox.Container.stat`."""
        return await bridge(partial(self.driven.stat, path, follow_symlinks=follow_symlinks))

    async def exists(self, path: StrPath) -> bool:
        """Whether *path* leads to something inside."""
        return await bridge(partial(self.driven.exists, path))

    async def remove(self, path: StrPath, *, recursive: bool = False, missing_ok: bool = False, timeout: float | None = REMOVE_S) -> None:
        """Remove a file or directory inside; see `sandbox.Container.remove`."""
        await bridge(partial(self.driven.remove, path, recursive=recursive, missing_ok=missing_ok, timeout=timeout))

    async def copy_in(
        self,
        source: StrPath,
        target: StrPath,
        *,
        user: int | str | None = None,
        max_size: Size = MAX_COPY,
        max_entries: int = MAX_ENTRIES,
        max_depth: int = MAX_DEPTH,
        timeout: float | None = COPY_S,
        progress: Progress | None = None,
    ) -> None:
        """Copy a file or directory of the host to *target*; see `sandbox.Container.copy_in`."""
        bounds: Bounds = {"max_size": max_size, "max_entries": max_entries, "max_depth": max_depth, "timeout": timeout, "progress": progress}
        await bridge(partial(self.driven.copy_in, source, target, user=user, **bounds))

    async def copy_out(
        self,
        source: StrPath,
        target: StrPath,
        *,
        max_size: Size = MAX_COPY,
        max_entries: int = MAX_ENTRIES,
        max_depth: int = MAX_DEPTH,
        timeout: float | None = COPY_S,
        progress: Progress | None = None,
    ) -> None:
        """Copy a file or directory to the host; see `sandbox.Container.copy_out`."""
        bounds: Bounds = {"max_size": max_size, "max_entries": max_entries, "max_depth": max_depth, "timeout": timeout, "progress": progress}
        await bridge(partial(self.driven.copy_out, source, target, **bounds))


# ---- Waits ----


async def _writable(hub_: Hub, find: Callable[[], int]) -> None:
    """Wait until the launcher takes requests. By a descriptor of our own: other tasks may wait for the same."""
    poll = select.poll()
    poll.register(find(), select.POLLOUT)
    if poll.poll(0):
        return
    fd = os.dup(find())
    try:
        if not await hub_.ready(fd, mask=select.POLLOUT, timeout=START_S):
            raise BrokenError(f"the launcher of this process took no request for {START_S:.0f} s; is it stopped?")
    finally:
        os.close(fd)


async def _must_come(hub_: Hub, fd: int, patience_s: float) -> None:
    if not await hub_.ready(fd, timeout=patience_s):
        raise BrokenError(f"the container's init said nothing for {patience_s:.0f} s")


async def _until_ready(hub_: Hub, session: Session) -> None:
    while True:
        await _must_come(hub_, session.channel_fd, START_S)
        if session.take_start():
            return


async def _discard(hub_: Hub, session: Session, error: BaseException) -> None:
    """End a container that is half made."""
    if isinstance(error, (SandboxError, OSError, asyncio.CancelledError)) and not session.is_ending:
        session.begin_end()
        deaf = Deaf()  # the error that is on its way is raised already
        if await _until_gone(hub_, session, deaf):
            return
    session.abandon()


async def _until_gone(hub_: Hub, session: Session, deaf: Deaf) -> bool:
    """Whether it is, within the time that `Session.close` waits too."""
    until = time.monotonic() + GONE_S
    while (fd := session.channel_fd) >= 0:
        if not await deaf.wait(partial(hub_.ready, fd, timeout=max(0.0, until - time.monotonic()))):
            return False
        if session.take_end():
            break
    return True


async def _until_over(run: Run, over: asyncio.Event) -> None:
    if run.late_at is None:
        await over.wait()
        return
    timer = asyncio.get_running_loop().call_later(run.late_at - time.monotonic(), run.give_up)
    try:
        await over.wait()
    finally:
        timer.cancel()


async def _kill(run: Run, over: asyncio.Event) -> None:
    """Kill a run and wait for its end, at most for as long as init may take."""
    run.kill()
    timer = asyncio.get_running_loop().call_later(GRACE_S, run.give_up)
    deaf = Deaf()  # a cancellation is on its way already
    await deaf.wait(over.wait)
    timer.cancel()


async def _take_back(hub_: Hub, launch: Launch) -> None:
    """Kill a program that may not have started yet, and wait for its end."""
    deaf, until = Deaf(), time.monotonic() + GRACE_S
    try:
        launch.kill()
        while await deaf.wait(partial(hub_.ready, launch.fileno(), timeout=max(0.0, until - time.monotonic()))):
            if launch.take_end():
                return
    except SandboxError:  # the container ends, and the program with it
        pass
    launch.release(sound=False)


async def run(argv: Sequence[Argument], image: StrPath | None = None, **options: Unpack[RunOptions]) -> Result:
    """Run one program in a container of its own, and remove that; takes the arguments of `sandbox.run`.

    Cancelled, it removes the container, and waits until it is gone.
    """
    mine, theirs = one_shot(image, dict(options))
    async with Container(image, **mine) as container:
        return await container.exec(argv, **theirs)
