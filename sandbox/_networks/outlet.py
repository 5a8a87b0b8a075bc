"""The way out for networks of those who may not change the host's: slirp4netns or pasta, which make sockets of what comes from a network.

Theory of operation
-------------------
A program of the host with the caller's rights (`Companion`) has the other end of a tap interface in the network's switch. What comes out
there it reads frame by frame, and connects, sends and receives as any program of the caller's does. The switch translates its
containers' addresses to that of the interface, so that it needs to know one guest only.

slirp4netns is root of the switch's user namespace, an ordinary user's, only until it has the interface; then it has an empty root directory,
no capability but to bind low ports (in that namespace, so: none), and a seccomp filter of its own. It lives until its pipe to us closes, or
the launcher kills it: nothing of it outlives this process. Ports are published by words over a Unix socket, whose name is in a file
system that is mounted nowhere, and goes with its last descriptor.

pasta, where the other one is not installed, does the same for an ordinary user but for ports: those of 2023 take them at their start only. It
goes into the switch's user namespace by itself; it says that it is ready by writing its pid "file", which is our pipe.

By IPv6 as well, in a network that has it, if the host has a default route of it just then: else programs would wait for answers, where they now
fail at once and take IPv4. Ports are of IPv4 alone: slirp4netns (1.2.0) takes no other address.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fcntl import ioctl
from ipaddress import IPv4Address
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, cast

from sandbox import _host
from sandbox._networks.companion import Companion
from sandbox._networks.passage import BRIDGE, NET, NET6, Passage
from sandbox._sys.fds import Fd
from sandbox.errors import BrokenError, ProtocolError, SetupError, UnsupportedError, UsageError
from sandbox.net.marked import MAIN, way_out
from sandbox.net.rtnetlink import ways_out

if TYPE_CHECKING:
    from sandbox._networks.switch import Switch
    from sandbox.net.rtnetlink import Requests
    from sandbox.net.spec import NetworkSpec

PROGRAM, OTHER = "slirp4netns", "pasta"
INTERFACE: Final = "outlet"
GATEWAY, GATEWAY6 = NET[2], NET6[2]  # the numbers are slirp4netns' own
ADDRESS, ADDRESS6 = NET[100], NET6[0x100]
TUN: Final = "/dev/net/tun"
REMEDY: Final = f"install the package {PROGRAM} (Debian: apt install {PROGRAM}), or passt, without published ports; or give internal=True"
LOW: Final = "ports below 1024 are root's; as root: sysctl -w net.ipv4.ip_unprivileged_port_start=0, or publish one from 1024 on"
_SIOCGIFINDEX: Final = 0x8933
_IFREQ: Final = struct.Struct("=16si20x")
_SOCKET: Final = "api"
_WAIT_S: Final = 10.0
_MOST: Final = 1 << 16
_READY, _EXIT, _ROOM, _NETNS, _USERNS = 3, 4, 5, 6, 7  # its descriptors


def find_program(wanted: str | None = None) -> str:
    """Where it is: the one that is *wanted*, or the first that is there. Raises: UnsupportedError: none is, or it could not make an interface."""
    names = [wanted] if wanted is not None else [PROGRAM] if _host.host().privileged else [PROGRAM, OTHER]
    if wanted == OTHER and _host.host().privileged:
        raise UnsupportedError("pasta keeps rights of root's which it has no use for", feature=OTHER, remedy=f"give uplink={PROGRAM!r}")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        words = " or ".join(names)
        raise UnsupportedError(f"reaching outside without root's rights takes {words}, which is not in PATH", feature=names[0], remedy=REMEDY)
    if not os.access(TUN, os.R_OK | os.W_OK):
        gone = not os.path.exists(TUN)
        reason = "is not there" if gone else "may not be opened by this user"
        remedy = f"as root: modprobe tun; in an outer container: docker run --device {TUN}" if gone else f"as root: chmod 666 {TUN} (as udev does)"
        raise UnsupportedError(f"reaching outside without root's rights takes {TUN}, which {reason}", feature=TUN, remedy=remedy)
    return os.path.abspath(found)


def check_ports(program: str) -> None:
    """Refuse ports where they cannot be had. Raises: UnsupportedError: the *program* is pasta."""
    if os.path.basename(program) == OTHER:
        remedy = f"install the package {PROGRAM}, or give uplink={PROGRAM!r} if it is there"
        raise UnsupportedError("pasta takes ports at its start only", feature=PROGRAM, remedy=remedy)


def check_subnet6(spec: NetworkSpec) -> None:
    """Refuse a subnet that is the program's own side. Raises: UsageError."""
    if spec.subnet6 is not None and spec.subnet6.overlaps(NET6):
        raise UsageError(f"subnet6: {NET6} is {PROGRAM}'s own, in each network that reaches outside by it; give another one, or none")


def reaches6() -> bool:
    """Whether the host has a default route of IPv6, which is what a way outside by IPv6 takes. Raises: SetupError."""
    return bool(ways_out(6))


class Program:
    """The program, with its interface in a switch. Ends with `close`, and with this process. The caller has a lock."""

    def __init__(self, switch: Switch, path: str, *, interface: str, mtu: int, ipv6: bool) -> None:
        """Start it. The interface is not up, and has no address. Raises: SetupError, with what the program said."""
        self.path = path
        with ExitStack() as stack:
            self._room = stack.enter_context(Fd(switch.room()))
            theirs, self._life = (stack.enter_context(Fd(fd)) for fd in os.pipe2(os.O_CLOEXEC))
            with ExitStack() as lent:
                lent.enter_context(theirs)
                owner = switch.owner()
                user = None if owner is None else lent.enter_context(owner).fileno()
                how = (interface, mtu, ipv6)
                if os.path.basename(path) != OTHER:
                    fds = {_EXIT: theirs.fileno(), _ROOM: self._room.fileno(), _NETNS: switch.fileno()}
                    self._companion = Companion(_command(path, *how), fds, ready=_READY, user=user)
                elif user is not None:
                    self._companion = Companion(_pasta(path, *how), {_NETNS: switch.fileno(), _USERNS: user}, ready=_READY)
                else:
                    raise AssertionError("pasta is for ordinary users")
            stack.pop_all()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._companion.is_alive

    @property
    def pid(self) -> int:
        """Its own."""
        return self._companion.pid

    def listen(self, protocol: str, address: IPv4Address, port: int, inside: int) -> int:
        """Have it pass on what comes to a port of the host's to *inside* of `ADDRESS`; gives a number, for `end`. Raises: SetupError, BrokenError."""
        said = self._ask("add_hostfwd", proto=protocol, host_addr=str(address), host_port=port, guest_addr=str(ADDRESS), guest_port=inside)
        if "error" in said:
            why = _why_not(protocol, address, port)
            raise SetupError(f"listen on {address}:{port}/{protocol}", why, step="network", hint=LOW if why == errno.EACCES else "")
        number = said["return"].get("id") if isinstance(said.get("return"), dict) else None
        if not isinstance(number, int):
            raise ProtocolError(f"{PROGRAM} answers {said!r:.200}")
        return int(number)

    def end(self, number: int) -> None:
        """Have it listen there no more. Raises: BrokenError."""
        if self.is_alive and "error" in (said := self._ask("remove_hostfwd", id=number)):
            raise ProtocolError(f"{PROGRAM} answers {said!r:.200}")

    def _ask(self, what: str, **arguments: object) -> Mapping[str, Any]:
        """One question, one connection. It is said by a path of our own descriptor's, as the file system has no other."""
        words = json.dumps({"execute": what, "arguments": arguments}).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(_WAIT_S)
                sock.connect(f"/proc/self/fd/{self._room.fileno()}/{_SOCKET}")
                sock.sendall(words)
                sock.shutdown(socket.SHUT_WR)
                answer = b""
                while len(answer) < _MOST and (more := sock.recv(_MOST)):
                    answer += more
            said = json.loads(answer)
        except (OSError, ValueError) as error:
            raise BrokenError(f"{PROGRAM} of this network does not answer ({error}); close the network, and make another one") from error
        if not isinstance(said, dict):
            raise ProtocolError(f"{PROGRAM} answers {said!r:.200}")
        return cast("dict[str, Any]", said)

    def close(self) -> None:
        """End it, with what is connected through it. In a forked child its copies only are closed. May be called twice."""
        self._life.close()
        self._room.close()
        self._companion.close()


class Outlet:
    """Of one network. Ends with `close`, and with this process. The caller has a lock."""

    _passage: Passage
    _program: Program

    def __init__(self, switch: Switch, requests: Requests, *, mtu: int, ipv6: bool, wanted: str | None = None) -> None:
        """Start it, and have the switch pass on what goes there: it has `INTERFACE` then, with `ADDRESS` and a default route by `GATEWAY`.

        ipv6: the network has it. wanted: which program; None: what there is. Raises: UnsupportedError; SetupError, with what the program said.
        """
        program = find_program(wanted)
        self._prepare(switch, requests, mtu=mtu, ipv6=ipv6)
        with ExitStack() as stack:
            # First the rules: nothing is passed on without them.
            self._passage = Passage(switch.filters(), interface=INTERFACE, ipv6=self.leads6)
            stack.callback(self._passage.close)
            self._program = self._start(program, INTERFACE, mark=MAIN)
            stack.pop_all()

    def _prepare(self, switch: Switch, requests: Requests, *, mtu: int, ipv6: bool) -> None:
        self._switch, self._requests, self._mtu = switch, requests, mtu
        self.leads6 = ipv6 and reaches6()  # whether outside is reached by IPv6, too
        # By protocol and port of `ADDRESS`: the host's, and its number; None: it could not be had again.
        self._listening: dict[tuple[str, int], tuple[IPv4Address, int, int | None]] = {}

    def _start(self, path: str, interface: str, *, mark: int) -> Program:
        """Start the program; what has this *mark* leaves by it (`marked.MAIN`: all that is for nobody near)."""
        program = Program(self._switch, path, interface=interface, mtu=self._mtu, ipv6=self.leads6)
        try:
            # Without its mark, nothing that comes by it would be answered by it.
            self._switch.forward(BRIDGE, interface, from_anywhere=mark != MAIN)
            index = self._index(interface)
            way = way_out(index, ADDRESS, GATEWAY, mtu=self._mtu, mark=mark)
            if self.leads6:
                self._switch.begin_ipv6(interface)
                self._switch.forward_ipv6()
                way += way_out(index, ADDRESS6, GATEWAY6, mtu=self._mtu, mark=mark)
            self._requests.send(way, "give a network's outlet its addresses")
        except BaseException:
            program.close()
            raise
        return program

    def _index(self, interface: str) -> int:
        with Fd(self._switch.socket(domain=socket.AF_INET, kind=socket.SOCK_DGRAM, protocol=0)) as sock:
            return int(_IFREQ.unpack(ioctl(sock.fileno(), _SIOCGIFINDEX, _IFREQ.pack(interface.encode(), 0)))[1])

    @property
    def is_alive(self) -> bool:
        """Whether the program runs."""
        return self._program.is_alive

    @property
    def pid(self) -> int:
        """The program's."""
        return self._program.pid

    def check_ports(self) -> None:
        """Refuse ports where they cannot be had. Raises: UnsupportedError: the program is pasta."""
        check_ports(self._program.path)

    def publish(self, protocol: str, host: tuple[IPv4Address, int], to: tuple[IPv4Address, int]) -> Callable[[], None]:
        """Have what comes to *host*, an address of the host's and a port, go *to* a container's; gives what ends that.

        Connections of other hosts come from where they come from; the host's own from `GATEWAY`. What is connected when it ends stays so.
        Raises: SetupError: why it cannot listen there, as EADDRINUSE, EACCES; UnsupportedError: the program is pasta; BrokenError.
        """
        self.check_ports()
        with ExitStack() as stack:
            inside = self._take(protocol, host, to)
            stack.callback(self._give_back, protocol, inside)
            self._passage.publish(protocol, inside, *to)
            stack.callback(self._passage.withdraw, protocol, inside)
            self._listening[protocol, inside] = *host, self._program.listen(protocol, *host, inside)
            stack.callback(self._end, protocol, inside)
            return stack.pop_all().close
        raise AssertionError("unreachable")

    def _take(self, protocol: str, host: tuple[IPv4Address, int], to: tuple[IPv4Address, int]) -> int:  # noqa: ARG002 - others heed it
        """A port of `ADDRESS`: the host's number, where another of the host's addresses has not taken it."""
        for port in chain((host[1],), range(1, 65536)):
            if (protocol, port) not in self._listening:
                return port
        raise UsageError(f"ports: all 65,535 of {protocol} are published; use another network")

    def _give_back(self, protocol: str, inside: int) -> None:
        """Have a port of `ADDRESS` stand for nothing."""

    def _end(self, protocol: str, inside: int) -> None:
        number = self._listening.pop((protocol, inside))[2]
        if number is not None:
            self._program.end(number)

    def close(self) -> None:
        """End it, with what is connected through it. In a forked child its copies only are closed. May be called twice."""
        self._program.close()
        self._passage.close()


def _why_not(protocol: str, address: IPv4Address, port: int) -> int:
    """Its errno, which the program does not tell: as we get it, who have no more rights than that."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as sock:
        try:
            sock.bind((str(address), port))
        except OSError as error:
            return error.errno or errno.EADDRINUSE
    return errno.EADDRINUSE  # it has become free since


def _command(program: str, interface: str, mtu: int, ipv6: bool) -> tuple[str, ...]:
    return (
        program, *(("--enable-ipv6",) if ipv6 else ()), f"--mtu={mtu}", f"--cidr={NET}",
        # Not --disable-host-loopback: what comes by UDP from the host's 127.0.0.1 to a published port would get no answer. See `passage`.
        "--disable-dns", "--enable-sandbox", "--enable-seccomp",
        f"--ready-fd={_READY}", f"--exit-fd={_EXIT}", f"--api-socket=/proc/self/fd/{_ROOM}/{_SOCKET}",
        "--netns-type=path", f"/proc/self/fd/{_NETNS}", interface,
    )  # fmt: skip


def _pasta(program: str, interface: str, mtu: int, ipv6: bool) -> tuple[str, ...]:
    nothing = [word for option in ("-t", "-u", "-T", "-U") for word in (option, "none")]  # what it publishes by itself: either side's listeners
    # Its answers to NDP are those about neighbours as well: without them nobody finds its side.
    versions = ("--address", str(ADDRESS6), "--gateway", str(GATEWAY6)) if ipv6 else ("--ipv4-only", "--no-ndp")
    return (
        program, "--foreground", "--quiet", *versions, "--no-map-gw", *nothing, "--no-dhcp", "--no-dhcpv6", "--no-ra", "--no-netns-quit",
        "--ns-ifname", interface, "--address", str(ADDRESS), "--netmask", str(NET.prefixlen), "--gateway", str(GATEWAY), "--mtu", str(mtu),
        "--pid", f"/proc/self/fd/{_READY}", "--userns", f"/proc/self/fd/{_USERNS}", "--netns", f"/proc/self/fd/{_NETNS}",
    )  # fmt: skip
