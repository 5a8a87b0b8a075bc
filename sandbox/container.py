"""`Container`: one container, from its spec to its end; and `run`, for a program that needs one only for itself.

What a container takes is imported when the first one is made: most of its 100 ms go into making the classes of specs and plans, and a
program that imports this library may never use it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Literal, Never, Self

from sandbox._files.face import MAX_READ, FileAccess
from sandbox._imaged.face import ImageAccess
from sandbox._namespaces import NamespaceAccess
from sandbox._networks.face import NetworkAccess
from sandbox._types import PIPE, Argument, Env, Size, StrPath, to_bool, to_signal
from sandbox.errors import ClosedError, SetupError, UsageError, raise_shortage, shortages

if TYPE_CHECKING:
    from sandbox._arguments import Prepared
    from sandbox._networks.wishes import Join
    from sandbox._session import Session
    from sandbox._spec import ContainerSpec, Mount
    from sandbox._started import Started
    from sandbox._users import Identity
    from sandbox.cg import Limits, Stats
    from sandbox.cg.introspect import Introspection
    from sandbox.fs import Directory, Layers, Scratch
    from sandbox.image import Image, Store
    from sandbox.monitoring import Monitor
    from sandbox.net import Port
    from sandbox.network import Network
    from sandbox.ns import Namespace
    from sandbox.process import Process, Result
    from sandbox.sec import Rlimits, Security

MAX_PREPARED: Final = 64
MAX_KEPT: Final = 16384


class Container(FileAccess, ImageAccess, NetworkAccess, NamespaceAccess):
    """A container. Nothing happens before ``with``, `create` or `start`.

    image: None: a read-only view of the host's programs and libraries; a path (a text with a slash in it, or a path object): a directory used
        as the root (never written to); a name as ``"debian:12"``, or an `Image`: an image of *store* (None: the user's own), whose ENV, WORKDIR,
        USER and VOLUMEs hold unless something else is said here.
    memory, swap, cpus, cpu_weight, cpuset, pids, io_weight, io_max, hugetlb, devices: limits on all programs together; see `Limits`.
    net: None: a network of its own with loopback only; ``"host"``: the host's; another `Container`: that one's; a `Network`, the name of
        one that is kept, a `Join` of one, or a list of those: an interface of its own in each; a `sandbox.ns.Namespace` of kind "net": that
        one, as it is.
    ports: published at the host: 80 (where a port is free there, see `ports`), "8080:80", "127.0.0.1:53:53/udp", "8000-8010:8000-8010", or
        `sandbox.net.Port`. publish_all: also those that the image exposes. links: other containers by an alias.
    dns, dns_search: addresses of name servers, domains to search. extra_hosts: names and their addresses, for /etc/hosts.
    name: by which others of its networks find it, beside its hostname and its aliases: letters, digits, ``_.-``.
    share: kinds of namespaces ("ipc", "uts", "cgroup") shared with the host; or a mapping of these and "time" to whose they are: ``"host"``, another
        `Container`, a `sandbox.ns.Resident` or a `sandbox.ns.Namespace` (root only).
    mounts: `Bind`, `Tmpfs`, `Volume`, or Docker's strings ("src:/dst:ro", "type=volume,source=name,target=/dst").
    read_only: no writable layer at all; scratch: size of the writable layer, a `Scratch`, or "copy": no overlay over the directory, but a
        copy of it in memory.
    env: over PATH and LANG, the only ones that are there by themselves. user: number, name or ``"user:group"``; None: 1000:1000 in a
        view of the host, root otherwise. hostname: also in /etc/hosts.
    security: `Security`, or the name of a profile ("default", "strict"). rlimits: `Rlimits` of every program.
    strict: raise UnsupportedError for what was asked and cannot be enforced; False: list it in `degraded` instead.
    time_offsets: seconds to add to the monotonic and the boot clock, in a time namespace.
    subids: as an ordinary user, have the ids of /etc/subuid and /etc/subgid inside too, not only one; root's containers always have 65,536.

    Raises: UsageError for a wrong value, before anything is touched.
    Thread-safe. A forked child must not use its parent's containers (ClosedError).
    """

    def __init__(
        self,
        image: StrPath | Image | Directory | Layers | None = None,
        *,
        store: Store | StrPath | None = None,
        memory: Size | None = None, swap: Size | None = None,
        cpus: float | None = None, cpu_weight: int | None = None,
        cpuset: str | Iterable[int] | None = None,
        pids: int | None = None,
        io_weight: int | None = None,
        io_max: Any = None,  # noqa: ANN401 - see Limits
        hugetlb: Any = None,  # noqa: ANN401
        devices: Iterable[str] | None = None,
        net: Container | Network | Join | Namespace | Sequence[Network | Join | str] | str | None = None,
        share: Iterable[str] | Mapping[str, Any] = (),
        ports: Iterable[int | str | Port] = (), publish_all: bool = False, links: Mapping[str, Container] | tuple[()] = (),
        dns: Iterable[str] = (), dns_search: Iterable[str] = (), extra_hosts: Mapping[str, str] | tuple[()] = (),
        mounts: Iterable[Mount | str] = (),
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: int | str | None = None,
        name: str | None = None, hostname: str = "sandbox", domainname: str | None = None,
        read_only: bool = False, scratch: Scratch | Size | None = None,
        shm: Size = "64M",
        security: Security | str = "default",
        rlimits: Rlimits | None = None,
        strict: bool = True,
        time_offsets: tuple[float, float] | None = None,
        subids: bool = False,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise unknown_words("Container", "__init__", unknown)
        from sandbox._networks.wishes import to_wishes
        from sandbox._spec import build

        word, self._wishes = to_wishes(net, ports, links, name)
        if share != ():
            share, hostname = self._take_shares(share, hostname, domainname=domainname, shm=shm, time_offsets=time_offsets)
        self.spec: ContainerSpec = build(
            image=image, store=store,
            memory=memory, swap=swap, cpus=cpus, cpu_weight=cpu_weight, cpuset=cpuset, pids=pids,
            io_weight=io_weight, io_max=io_max, hugetlb=hugetlb, devices=devices,
            net=word, joins=self._wishes.kinds, share=share,
            dns=dns, dns_search=dns_search, extra_hosts=extra_hosts,
            mounts=mounts,
            env=env, cwd=cwd, user=user,
            hostname=hostname, domainname=domainname,
            read_only=read_only,
            scratch=scratch,
            shm=shm, security=security, rlimits=rlimits,
            strict=strict, time_offsets=time_offsets, subids=subids,
        )
        if publish_all is not False:
            self._wishes = self._wishes.with_exposed(to_bool(publish_all, what="publish_all"), self.spec.image)
        self._started: Started | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._identities: dict[str, Identity] = {}
        self._prepared: dict[tuple[Any, ...], Prepared] = {}

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"pid={self._started.session.pid}" if self._started else "not started"
        image = self.spec.image
        return f"Container({self.spec.filesystem.root if image is None else image!r}, {state})"

    # ---- Life ----

    def create(self) -> Container:
        """Make the container, with all its walls, but run nothing; files can be put in place then.

        Raises: SetupError, UnsupportedError, UsageError (a source that is not there); ClosedError after `close`.
        """
        from sandbox._start import start

        with self._lock:
            if self._closed:
                raise ClosedError("the container was closed; make another one")
            if self._started is None:
                joins = self._wishes.joined
                try:
                    self._started = start(self._networked_spec(), joins=joins, attach=self._attach)
                except OSError as error:
                    raise_shortage(error, "make a container")
                    raise
        return self

    def start(self) -> Container:
        """As `create`: a container without programs costs nothing."""
        return self.create()

    def close(self) -> None:
        """Kill what runs and remove everything. Waits until it is gone; may be called twice, and before `start`."""
        with self._lock:
            self._closed = True
            started = self._started
        if started is not None:
            with shortages("close the container"):
                started.close()  # if that is interrupted, calling this again goes on
            self._started = None

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _live(self) -> Started:
        started = self._started
        if started is None:
            raise ClosedError("the container is closed" if self._closed else "the container is not started; use `with`, or start()")
        return started

    def _session(self) -> Session:
        return self._live().session

    @property
    def is_running(self) -> bool:
        """Whether it was started and its init lives."""
        return self._started is not None and self._started.session.is_alive

    @property
    def pid(self) -> int:
        """The pid of its init, as this process sees it. For looking only: signals go through `kill`."""
        return self._session().pid

    @property
    def degraded(self) -> tuple[str, ...]:
        """What could not be enforced or set up here, a sentence each; empty with ``strict=True`` but for optional parts."""
        return self._live().degraded

    def explain(self) -> str:
        """The plan, an operation a line; nothing is started."""
        from sandbox._explain import explain

        return explain(self.spec)

    # ---- Programs ----

    def exec(
        self,
        argv: Sequence[Argument],
        *,
        input: bytes | str | None = None,  # noqa: A002 - subprocess's name
        stdin: Any = None,  # noqa: ANN401
        stdout: Any = PIPE,  # noqa: ANN401
        stderr: Any = PIPE,  # noqa: ANN401
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: int | str | None = None,
        timeout: float | None = None, cpu_time: float | None = None,
        memory: Size | None = None,
        swap: Size | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        output_limit: Size | tuple[Size, Size] = MAX_READ,
        on_overflow: str = "kill",
        rlimits: Rlimits | None = None,
        umask: int = 0o022,
        pass_fds: Sequence[int] | Mapping[int, int] = (),
        text: bool = False, encoding: str | None = None, errors: str = "strict",
        check: bool = False,
        accounting: bool | Literal["full"] | None = None,
        **unknown: Never,
    ) -> Result:
        """Run a program to its end; nothing that it started outlives it.

        argv: a list; without a slash the program is looked for in the container's PATH. input: sent to its standard input (else /dev/null).
        stdin, stdout, stderr: as in subprocess; a function gets the output as it comes, in this thread, and what it raises ends the call.
        output_limit: bytes of each that are kept or passed on (64M), or a pair: of stdout, of stderr. on_overflow: ``"kill"`` a program
            that writes more (OUTPUT_LIMIT), or ``"discard"`` the rest, which is counted (`Result.stdout_size`).
        timeout, cpu_time: seconds of wall clock, and of CPU time of all that it starts. memory, swap, cpus, pids: limits of this run.
        pass_fds: descriptors that it gets beside 0, 1, 2 (a mapping: number inside -> ours).
        accounting: True gives the run a control group even without limits, for `memory_peak`, `pids_peak` and exact CPU time;
            None: when this run or the container has limits. "full": also `Result.details`, which takes more files to read.

        Raises: UsageError, ProgramNotFoundError, SetupError, ClosedError, BrokenError; CommandError with *check*.
        """
        if unknown:
            raise unknown_words("exec", "exec", unknown)
        if check is not False:
            to_bool(check, what="check")
        live = self._started or self._live()
        as_key, text_of, wire_up = live.parts  # no import: each takes a microsecond, each time
        argv, env = as_key(argv), None if env is None else as_key(env)
        said = (argv, env, cwd, user, timeout, cpu_time, memory, swap, cpus, pids, output_limit, on_overflow, rlimits, umask, accounting)
        decoder = text_of(text, encoding, errors)
        data = None if input is None else input_bytes(input, stdin, encoding, errors, text=text)
        prepared = self._prepare(said, pass_fds)
        try:
            wiring = wire_up(PIPE if data is not None else stdin, stdout, stderr, prepared.fds, tty=False)
            leaf = live.leaf(prepared, wiring)
            result = live.session.run(prepared.spec, wiring, data, leaf, text=decoder, leaves=live)
        except OSError as error:
            raise_shortage(error, "run a program")
            raise
        return result.check() if check else result

    def _prepare(
        self, said: tuple[Any, ...], pass_fds: Sequence[int] | Mapping[int, int], tty: bool = False, size: tuple[int, int] = (0, 0)
    ) -> Prepared:
        """Check the arguments of a run. The last ones that were fine are remembered: a container runs the same again and again."""
        # What has other contents at another time is looked at each time.
        is_alone = not pass_fds and tty is False and isinstance(said[0], tuple) and isinstance(said[1], (tuple, type(None)))
        key = (*said, *map(type, said))  # 1 and True are equal, and one of the two is refused
        try:
            found = self._prepared.get(key) if is_alone else None
        except TypeError:  # an argument that cannot be a key
            found, is_alone = None, False
        if found is not None:
            return found
        from sandbox._arguments import ExecOptions, build_spec

        options = ExecOptions._make((*said, pass_fds, tty, size))
        prepared = build_spec(options, self.spec, self._identity)
        # Another user is looked up each time; and what is large is not kept.
        if is_alone and options.user is None and len(prepared.spec.plain) <= MAX_KEPT:
            if len(self._prepared) >= MAX_PREPARED:
                self._prepared.clear()
            self._prepared[key] = prepared
        return prepared

    def popen(
        self,
        argv: Sequence[Argument],
        *,
        stdin: Any = None,  # noqa: ANN401
        stdout: Any = None,  # noqa: ANN401
        stderr: Any = None,  # noqa: ANN401
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: int | str | None = None,
        timeout: float | None = None, cpu_time: float | None = None,
        memory: Size | None = None,
        swap: Size | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        output_limit: Size | tuple[Size, Size] = MAX_READ,
        on_overflow: str = "kill",
        rlimits: Rlimits | None = None,
        umask: int = 0o022,
        pass_fds: Sequence[int] | Mapping[int, int] = (),
        text: bool = False, encoding: str | None = None, errors: str = "strict",
        accounting: bool | Literal["full"] | None = None,
        tty: bool = False,
        size: tuple[int, int] = (24, 80),
        **unknown: Never,
    ) -> Process:
        """Start a program and return a `Process`: subprocess.Popen's vocabulary. Limits as in `exec`, but for *output_limit* and
        *on_overflow*: they are for what `Process.communicate` reads. What the caller reads from the streams itself is the caller's to count.

        stdin, stdout, stderr: None is /dev/null (never the caller's own). tty: give it a terminal of *size* (rows, columns)
        instead of the three; `Process.terminal` is its other end.
        """
        if unknown:
            raise unknown_words("popen", "popen", unknown)
        from sandbox._arguments import as_key, text_of
        from sandbox._wiring import wire_up

        argv, env = as_key(argv), None if env is None else as_key(env)
        said = (argv, env, cwd, user, timeout, cpu_time, memory, swap, cpus, pids, output_limit, on_overflow, rlimits, umask, accounting)
        decoder = text_of(text, encoding, errors)
        live = self._live()
        prepared = self._prepare(said, pass_fds, tty, size)
        if tty and not (stdin is stdout is stderr is None):
            raise UsageError("tty=True gives the program one terminal for stdin, stdout and stderr; leave them out")
        try:
            wiring = wire_up(stdin, stdout, stderr, prepared.fds, tty=tty)
            if wiring.sinks is not None:
                wiring.close()
                raise UsageError("stdout, stderr: functions are for exec; give popen PIPE, and read from the process, or use Process.chunks")
            leaf = live.leaf(prepared, wiring)
            return live.session.popen(prepared.spec, wiring, leaf, text=decoder, leaves=live)
        except OSError as error:
            raise_shortage(error, "start a program")
            raise

    def _identity(self, user: str) -> Identity:
        """Who *user* is. The container's own user is looked up once, before any program could change the files."""
        found = self._identities.get(user)
        if found is None and user == self.spec.user:
            found = self._live().identity
        if found is None:
            from sandbox._users import resolve

            passwd, group = (partial(self._read_or_nothing, f"/etc/{name}") for name in ("passwd", "group"))
            found = resolve(user, passwd=passwd, group=group, ids=self._live().ids)
            if user == self.spec.user:
                self._identities[user] = found
        return found.alone() if self._live().ids.deny_setgroups else found

    def _read_or_nothing(self, path: str) -> bytes:
        try:
            return self.read_bytes(path, max_size=1 << 20)
        except (SetupError, UsageError):
            return b""  # missing, a FIFO, too large: then it names nobody

    def kill(self, signal: int | None = None) -> None:
        """Kill everything in the container (SIGKILL), or send *signal* to every program in it. The container stays."""
        import signal as signals

        self._session().signal_all(to_signal(signals.SIGKILL if signal is None else signal))

    def pause(self) -> None:
        """Freeze every program; they do not notice. Needs: the freezer of cgroup v1, or cgroup v2.

        What is killed meanwhile, by `kill` or a deadline, ends at once with cgroup v2, and with v1 when it is resumed.

        It takes a container with a limit, or one that was asked for this, `stats`, `update` or a monitor before its first program.
        Until `resume`, no program can be started.

        Raises: UsageError: programs were started that are in no control group. UnsupportedError: none is to be had.
        """
        with shortages("pause the programs"):
            self._live().pause()

    def resume(self) -> None:
        """Let frozen programs go on."""
        with shortages("resume the programs"):
            self._live().resume()

    def stats(self) -> Stats:
        """What all programs use and used that were started since the container has a control group.

        It has one with any limit, from its first run with accounting on, or since it was asked for this before its first program.
        Raises: UsageError: it has none, but programs. UnsupportedError: none is to be had.
        """
        with shortages("read what the programs use"):
            return self._live().stats()

    def update(self, limits: Limits) -> None:
        """Set the limits that *limits* names, of all programs together, while they run; the others stay.

        Needs a control group, as `stats`. Without limits, those on memory and processes can be set.

        Raises: UsageError: the container has no limit of that kind, or no control group; SetupError: EBUSY: more memory than that is in use.
        """
        with shortages("set limits"):
            self._live().update(limits)

    def monitor(self, interval: float = 0.05, *, max_rows: int = 10_000) -> Monitor:
        """A time series of what all programs use, taken in a thread of its own within ``with``; see `Monitor`. Needs: as `stats`."""
        from sandbox.monitoring import Monitor

        return Monitor(self._live(), interval, max_rows=max_rows, counters=self._net_totals)

    @property
    def cgroup(self) -> Introspection:
        """The container's control files as typed attributes: ``c.cgroup.memory.limit_in_bytes`` (v1), ``c.cgroup.memory.max`` (v2)."""
        return self._live().group().files


def prepare_run(container: Container, argv: Sequence[Argument], o: Mapping[str, Any]) -> tuple[Started, Prepared]:
    """What `exec` or `popen` would run with all of its arguments, checked; for those who start it by themselves."""
    from sandbox._arguments import ExecOptions, as_key

    o = {**o, "argv": as_key(argv), "env": None if o["env"] is None else as_key(o["env"])}
    said = tuple(o[name] for name in ExecOptions._fields if name not in ("pass_fds", "tty", "size"))
    prepare, live = container._prepare, container._live  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - of this module
    prepared = prepare(said, o["pass_fds"], o.get("tty", False), o.get("size", (0, 0)))
    return live(), prepared


def group_from_now_on(container: Container) -> None:
    """Have all its programs come into its control group, although it has no limit: so it can be paused, and tells what it uses.

    Raises: as `Group.create`: UnsupportedError: none is to be had.
    """
    container._live().group()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - of this module


@cache
def keyword_defaults(method: str) -> dict[str, Any]:
    """The keyword arguments of a method of `Container`, with their defaults."""
    import inspect

    parameters = inspect.signature(getattr(Container, method)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def unknown_words(what: str, method: str, unknown: Iterable[str]) -> UsageError:
    """The error for keyword arguments that a method of `Container` has not."""
    from sandbox._arguments import unknown_argument

    return UsageError(f"{what}: {unknown_argument(min(unknown), keyword_defaults(method))}")


def input_bytes(data: bytes | str, stdin: Any, encoding: str | None, errors: str, *, text: bool) -> bytes:  # noqa: ANN401
    """What *input* says, as bytes. Raises: UsageError."""
    if stdin is not None:
        raise UsageError("input and stdin: give one of the two")
    if isinstance(data, str):
        if not text and encoding is None:
            raise UsageError("input: a str needs text=True or encoding=; or give bytes")
        try:
            return data.encode(encoding or "utf-8", errors)
        except UnicodeEncodeError as error:
            raise UsageError(f"input: {error}; give bytes, or errors='replace'") from None
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise UsageError(f"input: {type(data).__name__} is neither bytes nor str")
    return bytes(data)


def run(argv: Sequence[Argument], image: StrPath | None = None, **options: Any) -> Result:  # noqa: ANN401 - Container's and exec's
    """Run one program in a container of its own, and remove that; takes the arguments of `Container` and of `Container.exec`.

    *memory*, *cpus*, *pids* and *swap* limit the container. Without an image: a read-only view of the host.
    """
    from sandbox._arguments import one_shot

    mine, theirs = one_shot(image, options)
    with Container(image, **mine) as container:
        return container.exec(argv, **theirs)


