"""Networks that are kept by name, and outlive the process that made them.

Theory of operation
-------------------
A store is one directory, closed to other users (0700), which any number of processes use at once, without a daemon:

    NAME/network.json   what the network is (`sandbox.net.kept`), written once
    NAME/namespace      its switch: the network namespace, kept by a bind mount of its file (as `ip netns` keeps one)
    NAME/state.json     who is in it, replaced by one rename under the lock of NAME
    NAME/names          by which names, a log (`kept_names`)
    .new-<random>       a network on its way
    .gone-<random>      one that is being removed

A network comes into being, and goes, by one rename, under the lock of the store, which also makes sure that no two get one subnet. What begins with a
dot belongs to whoever has that lock, and is removed by the next one who takes it. Who joins a network writes a lease down under the lock of
NAME, and connects then; who removes one takes the same lock, and looks whether there is a lease of somebody who lives. So at every moment at which
a process may be killed there is either a whole network or something that the next one sweeps; and a lease ends with the init that it names.

The mount lies in memory (/run), and so does all the rest: a reboot leaves nothing. In a store on a disk, a document of another boot is swept too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any, Final

from attrs import evolve, field, frozen

from sandbox import _host
from sandbox._networks import directories, kept_names
from sandbox._networks.directories import Directory, default_store, not_found
from sandbox._networks.kept import endpoint_of, known
from sandbox._networks.kept_by_users import user_namespace
from sandbox._networks.kept_outside import described, take_away
from sandbox._networks.live import Live
from sandbox._networks.places import Endpoint
from sandbox._sys.places import absolute
from sandbox._types import StrPath, to_text
from sandbox.errors import NetworkInUseError, NetworkNotFoundError, UsageError
from sandbox.net.addresses import choose_subnet
from sandbox.net.kept import NetworkInfo, State, encode_info
from sandbox.net.rtnetlink import FIRST_PORT, routes
from sandbox.net.shape import Shape
from sandbox.net.spec import NetworkSpec, Subnets, to_spec
from sandbox.network import Network, check_possible, used_subnets

_SHORT_ID: Final = 4  # digits of an id that name a network, at least
RESERVED: Final = frozenset(("none", "host", "new", "bridge", "default", "container"))  # words of the command line, and of Docker's


def _to_store(value: StrPath | None) -> str:
    return default_store() if value is None else absolute(os.fsdecode(to_text(value, what="network store")), what="network store")


@frozen
class NetworkStore:
    """The networks that are kept by name, in a directory that is closed to other users (0700).

    Any number of threads and processes may use one store; nothing is made before the first network. A network lasts until it is removed, or
    the machine ends. Its processes must see the same mounts and the same pids.
    """

    path: str = field(default=None, converter=_to_store)

    def create(
        self,
        name: str,
        *,
        subnet: str | IPv4Network | None = None,
        gateway: str | IPv4Address | None = None,
        internal: bool = False,
        mtu: int | None = None,
        labels: Mapping[str, str] | None = None,
        ipv6: bool = False,
        subnet6: str | IPv6Network | None = None,
        allow: Iterable[str] | None = None,
        shape: Shape | None = None,
    ) -> NetworkInfo:
        """Make the network *name*; the rest as of `Network`. The subnet is in the way of no route of the host, nor of another network of the store.

        Raises: UsageError: a value is wrong, or the name or the subnet is taken; UnsupportedError: without root, or what kept networks do not have,
            or the host does not let through what goes outside.
        """
        spec = to_spec(
            _named(name), subnet=subnet, gateway=gateway, internal=internal, mtu=mtu, labels=labels, ipv6=ipv6, subnet6=subnet6, allow=allow
        )
        spec = evolve(spec, shape=shape)
        _check(spec)
        with self._opened(make=True) as store, self._swept(store):
            if name in directories.names(store):
                raise UsageError(f"network: {name!r} exists; choose another name, or remove it first")
            return self._make(store, spec)

    def get(self, name: str) -> NetworkInfo:
        """What is known of a network, by its name, its id or the first digits of that. Raises: NetworkNotFoundError; UsageError: it is damaged."""
        with self._existing(name) as store, self._directory(store, name) as directory:
            return directory.info()

    def networks(self) -> list[NetworkInfo]:
        """All networks, by name."""
        found: list[NetworkInfo] = []
        for name in self.names():
            with contextlib.suppress(NetworkNotFoundError):  # somebody has just removed it
                found.append(self.get(name))
        return found

    def names(self) -> list[str]:
        """List the networks, sorted."""
        try:
            with self._opened(make=False) as store:
                return directories.names(store)
        except FileNotFoundError:
            return []

    def open(self, name: str) -> Network:
        """The network *name* for ``Container(net=...)``; the default store's can be given by name. Raises: as `get`."""
        with self._existing(name) as store, ExitStack() as stack:
            directory = stack.enter_context(self._directory(store, name))
            info = directory.info()
            stack.pop_all()
            return known(info, directory)
        raise AssertionError("unreachable")

    def containers(self, name: str) -> tuple[Endpoint, ...]:
        """Who is in a network now, of whatever process, in the order of joining. Raises: as `get`."""
        with self._existing(name) as store, self._directory(store, name) as directory:
            return tuple(map(endpoint_of, directory.state().leases))

    def inspect(self, name: str) -> dict[str, Any]:
        """All that is known of a network and of who is in it, by Docker's names of the fields, ready for JSON. Raises: as `get`."""
        with self._existing(name) as store, self._directory(store, name) as directory:
            return directory.info().inspect(directory.state().leases, kept_names.known(directory))

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a network. *force*: one that is not there is no error, and one whose documents are damaged is removed.

        Nobody is disconnected: Raises: NetworkInUseError: containers are in it. NetworkNotFoundError.
        """
        try:
            with self._existing(name) as store, self._swept(store), self._directory(store, name) as directory:
                self._remove(store, directory, force=force)
        except NetworkNotFoundError:
            if not force:
                raise

    def prune(self, *, label: str | None = None, before: float | None = None) -> tuple[str, ...]:
        """Remove the networks in which no container is; gives their names. *label*: those with it; *before*: those made before."""
        removed: list[str] = []
        with contextlib.suppress(FileNotFoundError), self._opened(make=False) as store, self._swept(store):
            for name in directories.names(store):
                with contextlib.suppress(UsageError), Directory.open(store, self.path, name) as directory:  # in use; damaged: for `remove`
                    info = directory.info()
                    if (label is None or info.has_label(label)) and (before is None or info.created < before):
                        self._remove(store, directory, force=False)
                        removed.append(name)
        return tuple(removed)

    # ---- The store ----

    def _make(self, store: int, spec: NetworkSpec) -> NetworkInfo:
        """Make a network whose name is free; the caller has the store's lock."""
        spec = evolve(spec, subnet=self._subnet(store, spec.subnet))
        with ExitStack() as stack:
            directory = stack.enter_context(directories.make(store, self.path))
            try:
                # An ordinary user's has ways outside while somebody is in it.
                live = Live.make(spec if _host.host().privileged else evolve(spec, internal=True), Subnets(), stack, named=False)
                info = _info_of(spec, live)
                directory.write_document(encode_info(info))
                directory.write_state(State(FIRST_PORT))
                kept_names.make(directory, info)
                if not info.users:  # else it is made again by whoever is the first in it
                    kept_names.lead(info, live.switch)
                    directory.pin(live.switch.fileno())
                os.rename(directory.name, spec.name, src_dir_fd=store, dst_dir_fd=store)
            except BaseException:
                directories.clear(store, self.path, directory.name)
                raise
        return info

    def _subnet(self, store: int, wanted: IPv4Network | None) -> IPv4Network:
        others = directories.subnets(store, self.path)
        if wanted is None:
            ours = [net for net in used_subnets() if isinstance(net, IPv4Network)]
            return choose_subnet([*routes(), *ours, *others.values()])
        clash = next((f"{net} of the network {name!r}" for name, net in others.items() if net.overlaps(wanted)), None)
        if clash is not None:
            raise UsageError(f"subnet: {wanted} overlaps with {clash}; give another one, or none")
        return wanted

    def _remove(self, store: int, directory: Directory, *, force: bool) -> None:
        """Remove a network; the caller has the store's lock."""
        with directory.held():
            try:
                leases = directory.state().leases
            except NetworkNotFoundError:
                raise
            except UsageError:
                if not force:
                    raise
                leases = ()
            if leases:
                who = ", ".join(f"{lease.hostname} ({lease.address}, pid {lease.pid})" for lease in leases[:5])
                more = f" and {len(leases) - 5} more" if len(leases) > 5 else ""
                raise NetworkInUseError(f"network: {directory.name!r} is in use by {who}{more}; close these containers first")
            gone = directories.GONE + os.urandom(8).hex()
            os.rename(directory.name, gone, src_dir_fd=store, dst_dir_fd=store)
        with contextlib.suppress(UsageError):  # damaged: the pair goes with the namespace
            take_away(directory.info())
        directories.clear(store, self.path, gone)

    def _directory(self, store: int, name: str) -> Directory:
        """The directory of the network that *name* says; closed with ``with``."""
        try:
            return Directory.open(store, self.path, _to_file_name(name))
        except NetworkNotFoundError:
            found = self._by_id(store, name)
            if found is None:
                raise
            return Directory.open(store, self.path, found)

    def _by_id(self, store: int, digits: str) -> str | None:
        if len(digits) < _SHORT_ID or not set(digits) <= set("0123456789abcdef"):
            return None
        found: list[str] = []
        for name in directories.names(store):
            with contextlib.suppress(UsageError), Directory.open(store, self.path, name) as directory:
                found += [name] if directory.info().id.startswith(digits) else []
        if len(found) > 1:
            raise UsageError(f"network: {digits!r} are the first digits of several ids; give more of them, or a name")
        return found[0] if found else None

    @contextlib.contextmanager
    def _opened(self, *, make: bool) -> Generator[int]:
        store = directories.open_store(self.path, make=make)
        try:
            yield store
        finally:
            os.close(store)

    @contextlib.contextmanager
    def _swept(self, store: int) -> Generator[None]:
        """Hold the store's lock, and remove what the dead have left."""
        with directories.locked(store):
            directories.sweep(store, self.path)
            yield

    @contextlib.contextmanager
    def _existing(self, name: str) -> Generator[int]:
        try:
            store = directories.open_store(self.path, make=False)
        except FileNotFoundError:
            raise not_found(_to_file_name(name), self.path) from None
        try:
            yield store
        finally:
            os.close(store)


def _named(name: object) -> object:
    if name is None or name in RESERVED:
        raise UsageError(f"name: {name!r} is no name of a network that is kept; choose one that is none of {', '.join(sorted(RESERVED))}")
    return name


def _to_file_name(name: str) -> str:
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or len(to_text(name, what="network")) > 255:
        raise UsageError(f"network: {name!r} is no name of a network")
    return name


def _check(spec: NetworkSpec) -> None:
    """Refuse what cannot be done, before anything is touched."""
    check_possible(spec)


def _info_of(spec: NetworkSpec, live: Live) -> NetworkInfo:
    addresses6 = live.addresses6
    return NetworkInfo(
        name=spec.name,
        id=os.urandom(32).hex(),
        created=int(time.time()),
        subnet=str(live.addresses.subnet),
        gateway=str(live.addresses.gateway),
        internal=spec.internal,
        mtu=spec.mtu,
        labels=dict(spec.labels),
        subnet6="" if addresses6 is None else str(addresses6.subnet),
        gateway6="" if addresses6 is None else str(addresses6.gateway),
        allow=None if spec.allow is None else tuple(map(str, spec.allow)),
        uplink=described(live.uplink),
        shape=spec.shape,
        boot=directories.boot_id(),
        pids=directories.pid_namespace(),
        users=0 if _host.host().privileged else user_namespace(),
    )
