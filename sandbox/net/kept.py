"""What is written down of a network that is kept: what it is, once; and who is in it, again and again. Pure.

Who is in it is known by a *lease*: the address, and the container's init by its pid and the moment of its start, which name one process for ever.
A lease whose init has ended counts for nothing, so that nobody has to take back what a killed process held.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, cast

from attrs import asdict, evolve, field, frozen

from sandbox.errors import UsageError
from sandbox.net.shape import Shape

MAX_DOCUMENT: Final = 1 << 16
MAX_STATE: Final = 1 << 24  # a lease is about 200 bytes; the largest subnet that is offered has more addresses than there are pids
LAST_INNER: Final = 65535
_VERSION: Final = 2
_NO_NAMES: Final[Mapping[int, Iterable[str]]] = {}
_UPLINK: Final = ("Interface", "HostAddress", "Address", "", "HostAddress6", "Address6")  # what is shown of it
_MTU_OPTION: Final = "com.docker.network.driver.mtu"


@frozen
class NetworkInfo:
    """A kept network as its store knows it. *created*: seconds since 1970.

    allow: whom its containers reach outside, as `Network` has it. uplink: what leads outside: the host's interface, its address, the switch's, the
        namespace that the first is in; and the two addresses of IPv6, if it has them.
    shape: as of `Network`.
    """

    name: str
    id: str  # 64 digits, as Docker's
    created: int
    subnet: str
    gateway: str
    internal: bool
    mtu: int
    labels: Mapping[str, str] = field(factory=dict[str, str])
    subnet6: str = ""  # "": it has no IPv6
    gateway6: str = ""
    allow: tuple[str, ...] | None = None
    uplink: tuple[str, ...] = ()
    shape: Shape | None = None
    boot: str = field(default="", repr=False)  # of which it is: the namespace ends with it
    pids: int = field(default=0, repr=False)  # the pid namespace (its inode number) that leases speak of
    users: int = field(default=0, repr=False)  # an ordinary user's: the user namespace of who may use it; 0: root's

    def has_label(self, wanted: str) -> bool:
        """Whether it has the label ``NAME``, or ``NAME=VALUE``."""
        name, equals, value = wanted.partition("=")
        return name in self.labels and (not equals or self.labels[name] == value)

    @property
    def created_at(self) -> str:
        """When it was made, in UTC."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created))

    def inspect(self, leases: tuple[Lease, ...] = (), names: Mapping[int, Iterable[str]] = _NO_NAMES) -> dict[str, Any]:
        """The same by Docker's names of the fields, with who is in it, ready for JSON. *names*: by which each is found, by its port."""
        families = [(self.subnet, self.gateway), *([(self.subnet6, self.gateway6)] if self.subnet6 else [])]
        return {
            "Name": self.name,
            "Id": self.id,
            "Created": self.created_at,
            "Scope": "local",
            "Driver": "bridge",
            "EnableIPv4": True,
            "EnableIPv6": bool(self.subnet6),
            "IPAM": {"Driver": "default", "Options": {}, "Config": [{"Subnet": subnet, "Gateway": gateway} for subnet, gateway in families]},
            "Internal": self.internal,
            "Containers": {self.endpoint_id(lease): self._endpoint(lease, names.get(lease.port, ())) for lease in leases},
            "Options": {_MTU_OPTION: str(self.mtu)},
            "Labels": dict(self.labels),
            "Allow": None if self.allow is None else list(self.allow),
            "Shape": None if self.shape is None else asdict(self.shape),
            "Uplink": {name: value for name, value in zip(_UPLINK, self.uplink, strict=False) if name} or None,
        }

    def endpoint_id(self, lease: Lease) -> str:
        """64 digits that nobody else's place has: a network never has one port twice."""
        return f"{self.id[:48]}{lease.port:016x}"

    def _endpoint(self, lease: Lease, names: Iterable[str]) -> dict[str, Any]:
        return {
            "Name": lease.hostname,
            "EndpointID": self.endpoint_id(lease),
            "MacAddress": lease.mac,
            "IPv4Address": f"{lease.address}/{self.subnet.rpartition('/')[2]}",
            "IPv6Address": f"{lease.address6}/{self.subnet6.rpartition('/')[2]}" if lease.address6 else "",
            "Aliases": list(lease.aliases),
            "Names": list(names),
            "Ports": _ports(lease),
            "Pid": lease.pid,
        }


def _ports(lease: Lease) -> dict[str, list[dict[str, str]]]:
    """As Docker's inspect of a container has them."""
    found: dict[str, list[dict[str, str]]] = {}
    for one in lease.published:
        address, _, number = one.host.rpartition(":")
        found.setdefault(one.port, []).append({"HostIp": address.strip("[]"), "HostPort": number})
    return found


@frozen
class Lease:
    """A container's place in a kept network. *pid*, *start*: its init's; *port*: the index of its interface in the switch, which no two ever have.

    published: ports that lead to it, see `Published`.
    """

    port: int
    address: str
    mac: str
    hostname: str
    pid: int
    start: int
    interface: str = "eth0"
    address6: str = ""  # "": it has none
    aliases: tuple[str, ...] = field(default=(), converter=tuple[str, ...])
    published: tuple[Published, ...] = ()


@frozen
class Published:
    """A port of a container (``"80/tcp"``), where the host leads to it (``"0.0.0.0:8080"``), and the port that stands for it between the two."""

    port: str
    host: str
    inner: int

    @classmethod
    def parse(cls, text: str) -> Published:
        """Read what `str` gives. Raises: ValueError."""
        port, host, inner = text.split(" ")
        return cls(port, host, int(inner))

    def __str__(self) -> str:
        return f"{self.port} {self.host} {self.inner}"


@frozen
class State:
    """Who is in a network, and what was given out last. *next_port*: the next; *inner*: of the ports that stand for published ones."""

    next_port: int
    inner: int = 0
    last: str = ""  # the address that was given out last, so that one that has just been freed rests a while
    last6: str = ""
    leases: tuple[Lease, ...] = ()

    def added(self, lease: Lease) -> State:
        """The state with one more place."""
        next_port = max(self.next_port, lease.port + 1)
        return evolve(self, next_port=next_port, last=lease.address, last6=lease.address6, leases=(*self.leases, lease))

    def without(self, port: int) -> State:
        """The state without a place, if it is there."""
        return evolve(self, leases=tuple(lease for lease in self.leases if lease.port != port))

    def with_inner(self, count: int) -> tuple[State, list[int]]:
        """Ports that stand for nothing, and the state when they are given out: round and round. Raises: UsageError: there are not as many."""
        taken = {known.inner for lease in self.leases for known in lease.published}
        turn = (self.inner + step for step in range(1, LAST_INNER + 1))
        free = (number for each in turn if (number := (each - 1) % LAST_INNER + 1) not in taken)
        found = list(itertools.islice(free, count))
        if len(found) < count:
            raise UsageError(f"ports: more than {LAST_INNER} are published in one network")
        return evolve(self, inner=found[-1] if found else self.inner), found

    def publishing(self, address: str, ports: Iterable[Published]) -> State:
        """The state when these ports lead to the container at *address*, beside what did before."""
        more = tuple(ports)

        def change(lease: Lease) -> Lease:
            return evolve(lease, published=(*lease.published, *more)) if address in (lease.address, lease.address6) else lease

        return self._changed(change)

    @property
    def is_publishing(self) -> bool:
        """Whether a port leads to any of them."""
        return any(lease.published for lease in self.leases)

    def withdrawing(self, inner: Collection[int]) -> State:
        """The state when these ports lead nowhere."""
        return self._changed(lambda lease: evolve(lease, published=tuple(one for one in lease.published if one.inner not in inner)))

    def _changed(self, change: Callable[[Lease], Lease]) -> State:
        return evolve(self, leases=tuple(map(change, self.leases)))

    def swept(self, is_alive: Callable[[Lease], bool]) -> State:
        """The state without the places of those that have ended."""
        return evolve(self, leases=tuple(filter(is_alive, self.leases)))


def encode_info(info: NetworkInfo) -> bytes:
    """The document of *info*. Raises: UsageError: its labels are too long."""
    document = {"version": _VERSION, **{name: getattr(info, name) for name in _INFO}, "labels": dict(info.labels)}
    document |= {"allow": None if info.allow is None else list(info.allow), "uplink": list(info.uplink)}
    document |= {"shape": None if info.shape is None else asdict(info.shape)}
    raw = json.dumps(document, sort_keys=True).encode()
    if len(raw) > MAX_DOCUMENT:
        raise UsageError(f"labels: {len(raw)} bytes in all are too much; keep within {MAX_DOCUMENT}")
    return raw


def decode_info(raw: bytes) -> NetworkInfo:
    """Read a document. Raises: ValueError: it is none."""
    document = {"users": 0, **_document(raw)}  # versions before this one had root's only
    labels = cast("dict[object, object]", _field(document, "labels", dict))
    if not all(isinstance(word, str) for pair in labels.items() for word in pair):
        raise ValueError("a label is no text")
    return NetworkInfo(
        **{name: _field(document, name, kind) for name, kind in _INFO.items()},
        labels=cast("dict[str, str]", labels),
        allow=None if document.get("allow") is None else _words(document, "allow"),
        uplink=_words(document, "uplink"),
        shape=_to_shape(document.get("shape")),
    )


def encode_state(state: State) -> bytes:
    """The document of *state*."""
    given = {"next_port": state.next_port, "inner": state.inner, "last": state.last, "last6": state.last6}
    return json.dumps({"version": _VERSION, **given, "leases": list(map(_of_lease, state.leases))}).encode()


def _of_lease(lease: Lease) -> dict[str, Any]:
    lists = {"aliases": list(lease.aliases), "published": list(map(str, lease.published))}
    return {**{name: getattr(lease, name) for name in _LEASE}, **lists}


def decode_state(raw: bytes) -> State:
    """Read a document. Raises: ValueError: it is none."""
    document = _document(raw)
    leases = cast("list[object]", _field(document, "leases", list))
    last, last6 = (_field(document, name, str) for name in ("last", "last6"))
    next_port, inner = (_field(document, name, int) for name in ("next_port", "inner"))
    return State(next_port, inner, last, last6, tuple(map(_to_lease, leases)))


_INFO: Final[Mapping[str, type]] = {
    "name": str,
    "id": str,
    "created": int,
    "subnet": str,
    "gateway": str,
    "internal": bool,
    "mtu": int,
    "subnet6": str,
    "gateway6": str,
    "boot": str,
    "pids": int,
    "users": int,
}
_LEASE: Final[Mapping[str, type]] = {
    "port": int,
    "address": str,
    "mac": str,
    "hostname": str,
    "pid": int,
    "start": int,
    "interface": str,
    "address6": str,
}


def _to_lease(found: object) -> Lease:
    if not isinstance(found, dict):
        raise ValueError("a lease is no object")  # noqa: TRY004 - of a document
    lease = cast("dict[str, Any]", found)
    published = tuple(map(Published.parse, _words(lease, "published")))
    return Lease(**{name: _field(lease, name, kind) for name, kind in _LEASE.items()}, aliases=_words(lease, "aliases"), published=published)


def _to_shape(found: object) -> Shape | None:
    if found is None:
        return None
    values = cast("dict[str, Any]", found if isinstance(found, dict) else {})
    try:
        return Shape(**values)
    except TypeError:
        raise ValueError("shape: one of its values has another name") from None


def _words(document: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = cast("list[object]", _field(document, name, list))
    if not all(isinstance(word, str) for word in found):
        raise ValueError(f"{name}: one is no text")
    return tuple(cast("list[str]", found))


def _document(raw: bytes) -> dict[str, Any]:
    document = json.loads(raw)
    found = cast("dict[str, Any]", document if isinstance(document, dict) else {})
    if found.get("version") != _VERSION:
        raise ValueError(f"of version {found.get('version')!r}")
    return found


def _field(document: Mapping[str, Any], name: str, kind: type) -> Any:  # noqa: ANN401 - of *kind*
    value = document.get(name)
    if type(value) is not kind:
        raise ValueError(f"{name} is missing")
    return value
