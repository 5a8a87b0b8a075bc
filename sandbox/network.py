"""`Network`: containers that reach one another, and nobody else."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from types import MappingProxyType, TracebackType
from typing import Final, Self

from attrs import define, field, frozen

from sandbox import _host
from sandbox import _plan as plan
from sandbox._networks.switch import Switch, namespace_of
from sandbox._session import Session
from sandbox.errors import ClosedError, SetupError, UnsupportedError
from sandbox.net.addresses import mac_of
from sandbox.net.rtnetlink import FIRST_PORT, Requests, Templates, bridge, templates
from sandbox.net.spec import Addresses, Subnets, to_spec

_ROOT: Final = f"@{plan.ROLE_ROOT}"
_HOSTS: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_subnets = Subnets()


@frozen
class Endpoint:
    """A container's place in a network."""

    hostname: str
    address: str
    mac: str
    pid: int  # of the container's init, as this process sees it


@define(eq=False)
class _Live:
    """A network that was made. *_lock* is held for one request to the kernel at a time."""

    switch: Switch
    requests: Requests
    addresses: Addresses
    templates: Templates
    endpoints: dict[int, Endpoint] = field(factory=dict[int, Endpoint])
    lock: threading.Lock = field(factory=threading.Lock)
    next_port: int = FIRST_PORT


class Network:
    """A network of containers: each gets an interface ``eth0`` with an address in it, and reaches the others by theirs.

    Nothing happens before ``with`` or `create`; at the end of the block all of it is gone. It lives in a namespace of its own: the host
    sees no interface, address or rule of it, and reaches nothing in it. Containers of two networks do not reach each other.

    name: letters, digits, ``_-.``; None: one is made up. subnet: ``"10.1.2.0/24"``; None: one that is in the way of no route of the host
        and no other network of this process. gateway: the address that the network keeps for itself; None: the first.
    internal: True: its containers reach one another only. False is not offered yet, and raises UnsupportedError in `create`.
    mtu: of its interfaces, 1500 unless said. labels: strings of the caller's own, for looking at.

    Raises: UsageError for a wrong value, before anything is touched.
    Needs: root, and a kernel with bridge and veth.
    Thread-safe. A forked child must not use its parent's networks (ClosedError).
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        subnet: str | IPv4Network | None = None,
        gateway: str | IPv4Address | None = None,
        internal: bool = False,
        mtu: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._spec = to_spec(name, subnet=subnet, gateway=gateway, internal=internal, mtu=mtu, labels=labels)
        self._live: _Live | None = None
        self._closed = False
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = "closed" if self._closed else str(self._live.addresses.subnet) if self._live else "not created"
        return f"Network({self.name!r}, {state})"

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def is_open(self) -> bool:
        """Whether it was created and not closed."""
        return self._live is not None

    @property
    def labels(self) -> Mapping[str, str]:
        return MappingProxyType(dict(self._spec.labels))

    @property
    def is_internal(self) -> bool:
        """Whether its containers reach nothing but one another."""
        return self._spec.internal

    @property
    def subnet(self) -> str:
        """The subnet, as text. Raises: ClosedError: it is not created, or closed."""
        return str(self._made().addresses.subnet)

    @property
    def gateway(self) -> str:
        """The network's own address. Raises: as `subnet`."""
        return str(self._made().addresses.gateway)

    @property
    def containers(self) -> tuple[Endpoint, ...]:
        """Who is in it now, in the order of joining. Raises: as `subnet`."""
        live = self._made()
        with live.lock:
            return tuple(live.endpoints.values())

    # ---- Life ----

    def create(self) -> Network:
        """Make it. Raises: UnsupportedError, UsageError: the subnet is another network's; SetupError; ClosedError after `close`."""
        with self._lock:
            if self._closed:
                raise ClosedError("the network was closed; make another one")
            if self._live is None:
                self._check()
                with ExitStack() as stack:
                    self._live = self._make(stack)
                    self._stack = stack.pop_all()
                _networks.add(self)
        return self

    def _check(self) -> None:
        """Refuse what cannot be done, before anything is touched."""
        if not self._spec.internal:
            raise UnsupportedError(
                "networks that reach outside are not offered yet",
                feature="masquerade",
                remedy="give internal=True, for containers that reach one another only; or Container(net='host')",
            )
        if not _host.host().privileged:
            raise UnsupportedError("networks are made by root only", feature="CAP_NET_ADMIN", remedy="run as root, or Container(net=None)")

    def _make(self, stack: ExitStack) -> _Live:
        spec = self._spec
        subnet = _subnets.take(spec.subnet)
        stack.callback(_subnets.release, subnet)
        gateway = spec.gateway or subnet.network_address + 1
        switch = Switch()
        stack.callback(switch.close)
        requests = Requests(switch.socket())
        stack.callback(requests.close)
        for message, what in zip(bridge(gateway, subnet, mac=mac_of(gateway), mtu=spec.mtu), ("make a bridge", "give it an address"), strict=True):
            requests.send(message, what)
        return _Live(switch, requests, Addresses(subnet, gateway), templates(subnet, mtu=spec.mtu))

    def close(self) -> None:
        """Remove it. Containers that are in it still lose their interface. May be called twice, and before `create`."""
        with self._lock:
            self._closed = True
            live, self._live = self._live, None
            _networks.discard(self)
        if live is not None:
            with live.lock:  # whoever connects a container just now goes first
                self._stack.close()

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _made(self) -> _Live:
        live = self._live
        if live is None:
            raise ClosedError("the network is closed" if self._closed else "the network is not created; use `with`, or create()")
        return live

    # ---- Containers ----

    def admit(self, session: Session, hostname: str) -> tuple[Endpoint, Callable[[], None]]:
        """Connect a container that has run no program yet; gives its place, and what forgets it once it has ended. For `Membership`."""
        live = self._made()
        address = live.addresses.take()
        try:
            endpoint = Endpoint(hostname, str(address), mac_of(address), session.pid)
            self._connect(live, session, endpoint, address)
            _write_hosts(session, endpoint)
        except BaseException:
            live.addresses.release(address)
            raise
        return endpoint, partial(self._forget, live, session, address)

    def _connect(self, live: _Live, session: Session, endpoint: Endpoint, address: IPv4Address) -> None:
        with namespace_of(session) as inside, live.lock:
            if self._live is not live:
                raise ClosedError("the network was closed while a container joined it")
            theirs = Requests(live.switch.socket(inside))
            try:
                port, live.next_port = live.next_port, live.next_port + 1
                live.requests.send(live.templates.link_of(port=port, mac=endpoint.mac, namespace=inside.fileno()), "make an interface")
                theirs.send(live.templates.address_of(address), "give a container its address")
                theirs.send(live.templates.up, "bring a container's interface up")
            finally:
                theirs.close()
            live.endpoints[id(session)] = endpoint

    @staticmethod
    def _forget(live: _Live, session: Session, address: IPv4Address) -> None:
        with live.lock:
            live.endpoints.pop(id(session), None)
        live.addresses.release(address)

    def abandon(self) -> None:
        """In a forked child: let go of its copies, which would keep the namespace when the parent has ended."""
        self._closed = True
        live, self._live = self._live, None
        self._stack.pop_all()
        if live is not None:
            live.requests.close()
            live.switch.abandon()


def _write_hosts(session: Session, endpoint: Endpoint) -> None:
    """Its own name is its address. A root that nobody can write to keeps the first file, where the name is 127.0.1.1."""
    text = f"{_HOSTS}{endpoint.address}\t{endpoint.hostname}\n"
    try:
        session.request([plan.WriteFile("etc/hosts", text.encode("ascii"), _ROOT)], [])
    except SetupError as error:
        if error.errno != errno.EROFS:
            raise


_networks: weakref.WeakSet[Network] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    global _subnets
    mine, _subnets = list(_networks), Subnets()
    _networks.clear()
    for network in mine:
        network.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
