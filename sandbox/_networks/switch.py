"""A namespace for a network's bridge, and sockets inside network namespaces: without moving a thread of ours, and without a fork of Python.

Theory of operation
-------------------
A helper of the launcher, an init without programs, lives in a network namespace that it has made: the *switch*. It opens sockets there, and,
going there and back within one request, in the namespaces of containers; the descriptors come to us. Netlink asks for rights over a
namespace both when its socket is opened and when it is used; the helper has the caller's. What lives in the switch has no other holder
but this process (its sockets, and a descriptor of the namespace), and ends with it: the launcher ends the helper, the kernel the rest.

For an ordinary user the helper is root of a user namespace of its own, and so is each container; neither has rights over the other, but
whoever made both has all rights over both (cap_capable in the kernel: the owner, from the namespace around). So the helper stays at home;
a container's socket is opened by the container's own init, and sent from here with a destination, which makes the kernel look at the rights
of the sender alone (NETLINK_SKB_DST, __netlink_ns_capable): one request then makes a pair with an end in each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Mapping
from fcntl import ioctl
from functools import cache
from typing import Final, Self

from sandbox import _host
from sandbox import _plan as plan
from sandbox._launch import wire
from sandbox._session import Asked, Session
from sandbox._spawner import start_helper
from sandbox._sys import outer
from sandbox._sys.bpf import TCX_INGRESS
from sandbox._sys.constants import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, NS_GET_USERNS
from sandbox._sys.fds import Fd
from sandbox.errors import BrokenError, SandboxError, SetupError, UnsupportedError
from sandbox.net.nft import NETLINK_NETFILTER, Nftables
from sandbox.net.rtnetlink import NETLINK_ROUTE, Batch, refusal
from sandbox.ns.user import single_maps

_SIOCGSKNS: Final = 0x894C  # <linux/sockios.h>
# Of interfaces that are made from then on; ``lo`` keeps ::1. So nobody listens to router advertisements, nor has an address we did not give.
_CONF: Final = "/proc/sys/net/ipv6/conf"
_NO_IPV6: Final = plan.WriteProc(f"{_CONF}/default/disable_ipv6", b"1\n", plan.HOST, optional=True)
# The order matters: an interface that gets IPv6 takes an address of its own at once, and asks for routers, unless it was told not to before.
_IPV6: Final = tuple(
    (name, b"%d\n" % value)
    for name, value in {
        "addr_gen_mode": 1, "accept_ra": 0, "autoconf": 0, "accept_dad": 0, "accept_redirects": 0, "accept_source_route": -1, "disable_ipv6": 0,
    }.items()
)
# What counts is "all". A new namespace may have the first one's (net.core.devconf_inherit_init_net): it would join two networks, as above.
_NO_DETOURS6: Final = plan.WriteProc(f"{_CONF}/all/forwarding", b"0\n", plan.HOST)
# A new namespace takes the values of the first one, whose ``ip_forward`` Docker sets: a container in two networks would pass on what it gets
# from one to the other, and whoever does not forward would believe redirects. Of "all" and an interface, what counts is either, both or one of them.
_NO_DETOURS: Final = tuple(
    plan.WriteProc(f"/proc/sys/net/ipv4/conf/{name}", b"0\n", plan.HOST)
    for name in (
        "default/forwarding", "all/accept_redirects", "default/accept_redirects",
        "all/accept_source_route", "all/route_localnet", "default/route_localnet",
    )
)


# Errors by ICMP go to containers only: each attempt at what is not allowed is to fail at once, not only the first ones of a second.
_ALL_REFUSALS: Final = plan.WriteProc("/proc/sys/net/ipv4/icmp_ratemask", b"0\n", plan.HOST)
_ALL_REFUSALS6: Final = plan.WriteProc("/proc/sys/net/ipv6/icmp/ratelimit", b"0\n", plan.HOST)


# What a switch passes on it decides at its uplink and by its ports. A bridge that hands each frame to the packet filters of IP as well
# (br_netfilter, which Docker loads: on in each new namespace then) would follow flows between containers for nothing; and what is
# forwarded belongs to none of the switch's own sockets, where the kernel looks first.
_PLAIN: Final = (
    *(plan.WriteProc(f"/proc/sys/net/bridge/bridge-nf-call-{kind}tables", b"0\n", plan.HOST, optional=True) for kind in ("ip", "ip6", "arp")),
    plan.WriteProc("/proc/sys/net/ipv4/ip_early_demux", b"0\n", plan.HOST, optional=True),
)


def _with_ipv6(interface: str) -> tuple[plan.Op, ...]:
    """Have an interface (``default``: those that are made from then on) take part in IPv6 by the addresses that we give, and by nothing else."""
    return tuple(plan.WriteProc(f"{_CONF}/{interface}/{name}", value, plan.HOST) for name, value in _IPV6)


_THERE, _HERE = plan.Setns("there", CLONE_NEWNET), plan.Setns("here", CLONE_NEWNET)


@cache
def _settings(*, ipv6: bool) -> tuple[plan.Op, ...]:
    """Of interfaces that are made from then on, where the container is."""
    return (*((*_with_ipv6("default"), _NO_DETOURS6) if ipv6 else (_NO_IPV6,)), *_NO_DETOURS)


def _words(op: plan.Op) -> str:
    return "make an interface" if isinstance(op, plan.Netlink) else op.describe()


class Inside:
    """The network namespace of a container's init: a descriptor of it, and whom to ask for things in there. Close it after use."""

    def __init__(self, session: Session, fd: Fd) -> None:
        self.session, self._fd = session, fd

    def fileno(self) -> int:
        """The descriptor; it stays this object's."""
        return self._fd.fileno()

    def close(self) -> None:
        """Let go of it."""
        self._fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def namespace_of(session: Session) -> Inside:
    """The network namespace of a container's init; the caller closes it. Raises: BrokenError: it has ended; SetupError."""
    found = Fd(_by_pid(session) if _host.host().privileged else _by_socket(session))
    if not session.is_alive:  # by its pidfd: its pid may be another process's by now, and the namespace the host's
        found.close()
        raise BrokenError("the container ended while it joined a network; start another one")
    return Inside(session, found)


def _by_pid(session: Session) -> int:
    try:
        return os.open(f"/proc/{session.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SetupError("open the network namespace", error.errno or 0, step="network") from error


def _by_socket(session: Session) -> int:
    """An init is not dumpable, so that its files in /proc are closed to an ordinary user; a socket of its tells where it was made."""
    sock = session.request([plan.Socket("socket", socket.AF_UNIX, socket.SOCK_DGRAM)], ["socket"])[0]
    try:
        return ioctl(sock, _SIOCGSKNS)  # to those only who have CAP_NET_ADMIN over it
    except OSError as error:
        raise SetupError("open the network namespace", error.errno or 0, step="network") from error
    finally:
        os.close(sock)


def helper_of(ops: tuple[plan.Op, ...]) -> plan.Plan:
    """An init without programs that has carried out *ops*; an ordinary user's is root of a user namespace of its own."""
    if _host.host().privileged:
        return plan.Plan(clone_flags=CLONE_NEWPID, init_ops=ops)
    maps = single_maps(uid=0, gid=0)
    return plan.Plan(
        clone_flags=CLONE_NEWPID | CLONE_NEWUSER,
        uid_map=maps.uid_map,
        gid_map=maps.gid_map,
        deny_setgroups=maps.deny_setgroups,
        init_ops=ops,
    )


def _started(planned: plan.Plan) -> Session:
    try:
        return start_helper(planned, 0)
    except SetupError as error:
        if error.errno != errno.EROFS:
            raise
        raise UnsupportedError("networks set switches in /proc/sys, which is read-only here", feature="procfs", remedy=outer.PROC_REMEDY) from error


def _visit(inside: Inside, ops: tuple[plan.Op, ...]) -> None:
    """Carry *ops* out in a container's network namespace, in a process that exists for this only, and has all rights in there."""
    with Fd(ioctl(inside.fileno(), NS_GET_USERNS)) as owner:
        joins = (("user", CLONE_NEWUSER), ("net", CLONE_NEWNET))
        planned = plan.Plan(joins=joins, init_ops=ops, fds={"user": owner.fileno(), "net": inside.fileno()})
        start_helper(planned, wire.CREATE_DIRECT).close()


def _beside(kept: Fd) -> Session:
    """A helper in a namespace that somebody else keeps; an ordinary user's is root of the user namespace that it belongs to."""
    fds, joins = {"kept": kept.fileno()}, (("kept", CLONE_NEWNET),)
    if _host.host().privileged:
        return _started(plan.Plan(clone_flags=CLONE_NEWPID, joins=joins, fds=fds))
    with Fd(ioctl(kept.fileno(), NS_GET_USERNS)) as owner:
        joined = (("user", CLONE_NEWUSER), *joins)
        return _started(plan.Plan(clone_flags=CLONE_NEWPID, joins=joined, fds={"user": owner.fileno(), **fds}))


class Switch:
    """The namespace and its helper. Belongs to the process that made it. *kept*: a namespace that somebody keeps, to have a helper in that one."""

    def __init__(self, kept: Fd | None = None) -> None:
        if kept is None:
            made = helper_of((plan.Unshare(CLONE_NEWNET), plan.LoopbackUp(), _NO_IPV6, *_NO_DETOURS, _ALL_REFUSALS, *_PLAIN))
            self._session = _started(made)
        else:
            self._session = _beside(kept)
        self.is_ordinary = not _host.host().privileged
        try:
            self._namespace = namespace_of(self._session)
        except BaseException:
            self._session.close()
            raise

    @property
    def pid(self) -> int:
        """Of the helper, which is in there; for looking only."""
        return self._session.pid

    def socket(
        self,
        inside: Inside | None = None,
        *,
        ipv6: bool = False,
        domain: int = socket.AF_NETLINK,
        kind: int = socket.SOCK_RAW,
        protocol: int = NETLINK_ROUTE,
    ) -> int:
        """Open a socket in the namespace *inside*, or here: of rtnetlink, unless said. The descriptor is the caller's.

        *ipv6*: whether interfaces that are made in there from now on have it.

        Raises: SetupError, ClosedError.
        """
        opening = plan.Socket("socket", domain, kind, protocol)
        if inside is None:
            return self._session.request([*self._home, opening], ["socket"], self._home_fds)[0]
        if self.is_ordinary:
            _visit(inside, _settings(ipv6=ipv6))
            return inside.session.request([opening], ["socket"])[0]
        return self._session.request([_THERE, opening, *_settings(ipv6=ipv6), _HERE], ["socket"], {"there": inside.fileno(), **self._home_fds})[0]

    def sockets(self, *kinds: tuple[int, int, int]) -> list[int]:
        """Open several here at once, each of a domain, kind and protocol; they are the caller's. Raises: as `socket`."""
        ops = [plan.Socket(f"socket{number}", *kind) for number, kind in enumerate(kinds)]
        return self._session.request([*self._home, *ops], [op.out for op in ops], self._home_fds)

    def ask_for_pair(self, inside: Inside, messages: Batch, *, own: Batch | None = None, ipv6: bool) -> Asked:
        """Have the helper make a pair, and a socket of rtnetlink *inside* to which it sends *own*, in one request; `take_pair` waits for it.

        Not for an ordinary user.
        """
        theirs, ours = (plan.Socket(name, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) for name in ("theirs", "ours"))
        making = plan.Netlink("ours", messages.data, messages.last, plan.HOST if messages.mark is None else "there", messages.mark or 0)
        settling = () if own is None or not own.data else (plan.Netlink("theirs", own.data, own.last),)
        ops = [_THERE, theirs, *_settings(ipv6=ipv6), _HERE, ours, making, *settling]
        return self._session.ask(ops, ["theirs"], {"there": inside.fileno(), **self._home_fds})

    def take_pair(self, asked: Asked) -> int:
        """Wait for a pair; the socket is the caller's. Raises: SetupError; UnsupportedError: the kernel has no such links."""
        try:
            return self._session.answer(asked, words=_words)[0]
        except SetupError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise refusal("make an interface", errno.EOPNOTSUPP) from error
            raise

    def ask(self, *batches: tuple[Batch, int]) -> Asked:
        """Have the helper send messages of rtnetlink, each batch with a descriptor for its mark; `answer` waits. Not for an ordinary user."""
        ops: list[plan.Op] = [plan.Socket("ours", socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)]
        fds = self._home_fds
        for number, (batch, named) in enumerate(batches):
            fds[f"named{number}"] = named
            ops.append(plan.Netlink("ours", batch.data, batch.last, f"named{number}", batch.mark or 0))
        return self._session.ask([*self._home, *ops], [], fds)

    def ask_for_link(self, program: int, interface: int) -> Asked:
        """Have the helper let a program of BPF see what comes by an interface here; `take_link` waits. Not for an ordinary user."""
        fds = {**self._home_fds, "program": program}
        return self._session.ask([*self._home, plan.LinkProgram("link", "program", interface, TCX_INGRESS)], ["link"], fds)

    def take_link(self, asked: Asked) -> int:
        """Wait for a link, which lives as long as its descriptor, the caller's. Raises: SetupError."""
        return self._session.answer(asked)[0]

    def answer(self, asked: Asked) -> None:
        """Wait until that has been done. Raises: SetupError: the first failure."""
        self._session.answer(asked, words=_words)

    def fileno(self) -> int:
        """The namespace's descriptor; it stays this object's."""
        return self._namespace.fileno()

    def owner(self) -> Fd | None:
        """The user namespace that it belongs to, which the caller closes; None: it is the caller's own."""
        return Fd(ioctl(self._namespace.fileno(), NS_GET_USERNS)) if self.is_ordinary else None

    def forward(self, *interfaces: str, from_anywhere: bool = False) -> None:
        """Have what comes by these interfaces passed on. *from_anywhere*: whether or not what is sent to who sent it leaves by the same one.

        Raises: SetupError, ClosedError.
        """
        # Each by itself: a new namespace may have ``ip_forward`` from the first one, and to set what is set changes no interface.
        ops = [plan.WriteProc(f"/proc/sys/net/ipv4/conf/{name}/forwarding", b"1\n", plan.HOST) for name in interfaces]
        if from_anywhere:  # what counts is the stricter one of "all" and the interface
            ops += [plan.WriteProc(f"/proc/sys/net/ipv4/conf/{name}/rp_filter", b"0\n", plan.HOST) for name in ("all", *interfaces)]
        self._session.request([*self._home, *ops], [], self._home_fds)

    def write(self, settings: Mapping[str, str]) -> None:
        """Set switches of this namespace, by their paths, in turn. Raises: SetupError: ENOENT: the kernel has no such one; ClosedError."""
        ops = [plan.WriteProc(path, f"{value}\n".encode(), plan.HOST) for path, value in settings.items()]
        self._session.request([*self._home, *ops], [], self._home_fds)

    def room(self) -> int:
        """A directory for few files with names, in a file system that is mounted nowhere and goes with its descriptor, which is the caller's."""
        # Who is not the host's root has the right to mount in a mount namespace of its own only. What is unmounted outside goes there, too: the
        # kernel makes a copy for another user namespace a slave.
        first = (plan.Unshare(CLONE_NEWNS),) if self.is_ordinary else ()
        making = plan.NewFs("room", "tmpfs", (("size", "64k"), ("mode", "0700")))
        return self._session.request([*first, making], ["room"])[0]

    @property
    def _home(self) -> tuple[plan.Op, ...]:
        """What brings the helper back, should a request before have failed while it was elsewhere."""
        return () if self.is_ordinary else (_HERE,)

    @property
    def _home_fds(self) -> dict[str, int]:
        return {} if self.is_ordinary else {"here": self._namespace.fileno()}

    def forward_ipv6(self) -> None:
        """Have IPv6 passed on between all interfaces here, which the kernel does for all or for none. Raises: SetupError, ClosedError."""
        ops = [plan.WriteProc(f"{_CONF}/all/forwarding", b"1\n", plan.HOST), _ALL_REFUSALS6]
        self._session.request([*self._home, *ops], [], self._home_fds)

    def begin_ipv6(self, interface: str) -> None:
        """Have an interface here take part in IPv6; it has none of its own yet. Raises: SetupError, ClosedError."""
        self._session.request([*self._home, *_with_ipv6(interface)], [], self._home_fds)

    def filters(self) -> Nftables:
        """The packet filters of this namespace, over a socket that the caller closes. Raises: UnsupportedError: the kernel has none; SetupError."""
        try:
            return Nftables(self.socket(protocol=NETLINK_NETFILTER))
        except SetupError as error:
            if error.errno == errno.EPROTONOSUPPORT:
                raise UnsupportedError("this kernel has no netfilter", feature="nf_tables", remedy="modprobe nf_tables") from error
            raise

    def close(self) -> None:
        """End it, with all links in it unless somebody keeps the namespace. In a forked child only its copies are closed."""
        self._namespace.close()
        self._session.close()

    def abandon(self) -> None:
        """Let go of this process's copies, in a forked child."""
        self._namespace.close()
        with contextlib.suppress(SandboxError):
            self._session.abandon()
