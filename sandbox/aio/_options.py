"""The keyword arguments of `Container` and its methods, for type checkers; what they mean, and their defaults, is said there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from sandbox._files.limits import Progress
from sandbox._types import Env, Size, StrPath
from sandbox.fs import Bind, Scratch, Tmpfs, Volume
from sandbox.image import Store
from sandbox.net import Port
from sandbox.sec import Rlimits, Security


class _Shared(TypedDict, total=False):
    """What both a container and a run have."""

    memory: Size | None
    swap: Size | None
    cpus: float | None
    pids: int | None
    env: Env | None
    cwd: StrPath | None
    user: int | str | None
    rlimits: Rlimits | None


class _Container(TypedDict, total=False):
    store: Store | StrPath | None
    cpu_weight: int | None
    cpuset: str | Iterable[int] | None
    io_weight: int | None
    io_max: Any
    hugetlb: Any
    devices: Iterable[str] | None
    net: Any  # a `Container` of either kind, networks, "host" or None
    ports: Iterable[int | str | Port]
    publish_all: bool
    links: Any  # a mapping of names to containers of either kind
    dns: Iterable[str]
    dns_search: Iterable[str]
    extra_hosts: Mapping[str, str] | tuple[()]
    share: Any  # kinds, or a mapping of kinds to whose they are, a `Container` of either kind say
    mounts: Iterable[Bind | Tmpfs | Volume | str]
    name: str | None
    hostname: str
    domainname: str | None
    read_only: bool
    scratch: Scratch | Size | None
    shm: Size
    security: Security | str
    strict: bool
    time_offsets: tuple[float, float] | None
    subids: bool


class _Run(TypedDict, total=False):
    stdin: Any
    stdout: Any
    stderr: Any
    timeout: float | None
    cpu_time: float | None
    output_limit: Size | tuple[Size, Size]
    on_overflow: str
    umask: int
    pass_fds: Sequence[int] | Mapping[int, int]
    text: bool
    encoding: str | None
    errors: str
    accounting: bool | Literal["full"] | None


class _Exec(TypedDict, total=False):
    input: bytes | str | None
    check: bool


class ContainerOptions(_Shared, _Container, total=False):
    """Of `Container`."""


class ExecOptions(_Shared, _Run, _Exec, total=False):
    """Of `Container.exec`."""


class PopenOptions(_Shared, _Run, total=False):
    """Of `Container.popen`."""

    tty: bool
    size: tuple[int, int]


class RunOptions(_Shared, _Container, _Run, _Exec, total=False):
    """Of `run`."""


class Bounds(TypedDict):
    """Of copies."""

    max_size: Size
    max_entries: int
    max_depth: int
    timeout: float | None
    progress: Progress | None
