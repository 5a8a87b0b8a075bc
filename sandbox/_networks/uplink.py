"""What leads from a network to the outside: a pair of interfaces between its switch and the host, and rules that go when we do.

Theory of operation
-------------------
The pair (``sandbox0a570123`` here, ``uplink`` in the switch) has two addresses of a range that clashes with no route of the host. The switch
gives all that leaves it its own one, so that the host knows one address of each network, and none of its containers; the host gives that its own.

Here there is one table of nf_tables per process (`_HostTable`), which belongs to a netlink socket of this process: nobody else can change it,
``nft flush ruleset`` passes it over, and the kernel removes it with the socket, so after kill -9 too. The pair goes with the switch's namespace.
What is set on the pair's interface goes with the interface. Nothing else of the host is changed: not its forwarding, nobody's rules.

So others' rules may be in the way. A rule that accepts in one table cannot overrule one that drops in another; we ask the kernel instead of
guessing: `probe` sends a datagram out, and the last of all chains of the forward hook, which is ours, counts it and lets it go no further.

A network with IPv6 has the same once more for that, with a table of family ip6: see `uplink6`.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import TYPE_CHECKING, Final, Literal

from attrs import define, evolve, field, frozen

from sandbox._networks.obstacles import in_the_way
from sandbox.errors import SetupError, UnsupportedError
from sandbox.net.addresses import choose_subnet, mac_of
from sandbox.net.neighbours import known
from sandbox.net.nft import (
    IFNAME,
    IPV4,
    IPV6,
    PORT,
    PROTOCOL,
    Chain,
    Element,
    ListedChain,
    Nftables,
    Set,
    Table,
    Transaction,
    accept,
    counter,
    ct_original_dport,
    ct_original_protocol,
    ct_state,
    ct_status,
    drop,
    goto,
    iif,
    iifname,
    in_set,
    ip6_daddr,
    ip6_saddr,
    ip_daddr,
    ip_saddr,
    jump,
    mark,
    masquerade,
    oifname,
    reject,
    rule,
    udp_dport,
)
from sandbox.net.rtnetlink import BRIDGE, NETLINK_ROUTE, UPLINK, Requests, WayOut, brought_up, default_route, routes, uplink, ways_out

if TYPE_CHECKING:
    from sandbox._networks.switch import Switch

Address = IPv4Address | IPv6Address

PREFIX: Final = "sandbox"  # of our interfaces' names; with eight digits of their address they have the 15 letters that fit
# Private ranges (RFC 1918) beside those that networks take theirs from, and a corner of RFC 6598's, for who routes all of the former.
POOLS: Final = tuple(map(IPv4Network, ("10.87.0.0/16", "192.168.176.0/20", "100.127.224.0/19")))
_PAIR: Final = 31  # RFC 3021
_TRIES: Final = 20
_CONF: Final = "/proc/sys/net/ipv4/conf"
# Of our own interface. It takes no word of the containers for routes; 127.0.0.1 stays out of their reach.
_SETTINGS: Final = {"forwarding": "1", "accept_redirects": "0", "accept_source_route": "0", "route_localnet": "0"}
_FIRST, _LAST = 1 - 2**31, 2**31 - 1  # priorities before and behind all others
_DISCARD: Final = 9  # the port of RFC 863, where nobody is
# Of TEST-NET-2 (RFC 5737), and of IPv6's ranges for documentation (RFC 3849, RFC 9637), which some hosts have routes to nowhere for.
_NOWHERE: Final[dict[int, list[Address]]] = {
    4: [IPv4Address("198.51.100.9")],
    6: [IPv6Address("2001:db8:5ac3::9"), IPv6Address("3fff:5ac3::9")],
}
_PROBE_S: Final = 5.0  # for one to arrive at the host; on a busy machine an interface takes its time until it sends
_PASSING_S: Final = 0.2  # for one that has arrived to come through, which takes microseconds
_NEVER_DROPPED: Final = ("established", "related")


@frozen(eq=False)
class Uplink:
    """One network's. *name*: of the host's interface; *here*, *there*: the addresses of the host's end and of the switch's.

    six: the same way for IPv6, in a network that has it. undo: what others have made for it, to be taken back before it goes.
    """

    name: str
    here: Address
    there: Address
    host: HostTable
    six: Uplink | None = None
    undo: ExitStack = field(factory=ExitStack)

    @classmethod
    def make(cls, switch: Switch, requests: Requests, *, mtu: int, avoid: IPv4Network, stack: ExitStack, ipv6: bool = False) -> Uplink:
        """Lead *switch* outside; *requests* go to it, *avoid* is its subnet. *stack* takes it back, but for the pair, which goes with the switch.

        ipv6: by IPv6 as well.

        Raises: UnsupportedError: the host does not forward, or drops what is forwarded; or it lacks what this takes. SetupError.
        """
        ways = ways_out()
        check_forwarding(ways)
        if not ipv6:
            return cls._make(switch, requests, ways, mtu=mtu, avoid=avoid, stack=stack)
        from sandbox._networks import uplink6

        ways6 = ways_out(6)
        uplink6.check_forwarding(ways6)
        four = cls._make(switch, requests, ways, mtu=mtu, avoid=avoid, stack=stack)
        return evolve(four, six=uplink6.lead_out(four, switch, requests, ways6, stack))

    @classmethod
    def _make(cls, switch: Switch, requests: Requests, ways: list[WayOut], *, mtu: int, avoid: IPv4Network, stack: ExitStack) -> Uplink:
        host = hold(stack)
        pair, name = _make_pair(requests, mtu=mtu, avoid=avoid)
        found = cls(name, pair[0], pair[1], host)
        make_walls(switch)
        switch.forward("bridge", "uplink")
        host.add(found)
        stack.callback(host.remove, found)
        probe(switch, found, ways)
        return found


# ---- The pair ----


def _make_pair(requests: Requests, *, mtu: int, avoid: IPv4Network) -> tuple[IPv4Network, str]:
    """The interface's name is made of its address, so that the kernel lets nobody else of us have the same one."""
    here = Requests(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE).detach())
    try:
        with open("/proc/thread-self/ns/net", "rb") as outside:
            for pair in _candidates([*routes(), avoid]):
                name = f"{PREFIX}{int(pair[0]):08x}"
                macs = mac_of(pair[0]), mac_of(pair[1])
                if _is_made(requests, uplink(name, mtu, outside.fileno(), macs=macs)):
                    _set_up(name)
                    index = socket.if_nametoindex(name)
                    # Each knows the other for good: an ARP request that is lost (nothing is sent before the kernel has noticed that there
                    # is a carrier) is repeated a second later only.
                    here.send([*brought_up(index, pair[0], pair), known(index, pair[1], macs[1])], "bring up what leads outside")
                    near = [*brought_up(UPLINK, pair[1], pair), known(UPLINK, pair[0], macs[0]), default_route(pair[0], UPLINK)]
                    requests.send(near, "lead a switch outside")
                    return pair, name
    finally:
        here.close()
    raise SetupError("make an interface that leads outside", errno.EADDRINUSE, step="network", hint="there are too many")


def _is_made(requests: Requests, message: bytes) -> bool:
    try:
        requests.send(message, "make an interface that leads outside")
    except SetupError as error:
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def _candidates(taken: list[IPv4Network]) -> Iterator[IPv4Network]:
    """Somewhere in the ranges: what remembers an address that was in use a moment ago (conntrack) is not to meet it at once."""
    for _ in range(_TRIES):
        pool = POOLS[0]
        pair = IPv4Network((int(pool.network_address) + 2 * secrets.randbelow(pool.num_addresses // 2), _PAIR))
        if not any(net.prefixlen and net.overlaps(pair) for net in taken):
            yield pair
    for _ in range(_TRIES):
        pair = choose_subnet(taken, pools=POOLS, prefix=_PAIR)
        taken.append(pair)
        yield pair


def _set_up(name: str) -> None:
    """What the host's end is to do, and not to do. It is not up yet."""
    try:
        for setting, value in _SETTINGS.items():
            write(f"{_CONF}/{name}/{setting}", value)
        with suppress(FileNotFoundError):  # a host without IPv6
            write(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "1")
    except OSError as error:
        raise refusal_to_set_up(name, error) from error


def write(path: str, value: str) -> None:
    """Set a switch of the kernel's."""
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{value}\n")


def refusal_to_set_up(name: str, error: OSError) -> SetupError:
    """Words for an interface's settings that could not be written."""
    hint = "networks that reach outside take a /proc/sys that can be written to" if error.errno == errno.EROFS else ""
    return SetupError(f"set up {name}", error.errno or errno.EIO, step="network", hint=hint)


# ---- In the switch ----


KNOWN: Final = 1  # the mark of packets for an inner port of another process's, see `kept_published`


def walls_of(family: Literal["ip", "ip6"]) -> Table:
    """The switch's table."""
    return Table(family, "uplink")


def open_in(walls: Table) -> Set:
    """The inner ports that stand for something just now, see `published`."""
    return Set(walls, "open", (PROTOCOL, PORT))


def make_walls(switch: Switch, family: Literal["ip", "ip6"] = "ip") -> None:
    """Out goes what containers send, in comes what answers it, or was sent to a published port.

    Each packet comes by here, so the order counts: those of flows that are known are through after one rule or two, and one chain has all of it.
    """
    walls, open_ = walls_of(family), open_in(walls_of(family))
    forward = Chain(walls, "forward", hook="forward", policy="drop")
    inward = Chain(walls, "input", hook="input")
    nat = Chain(walls, "postrouting", hook="postrouting", type="nat", priority=100)
    published = Chain(walls, "published")
    work = Transaction().add(walls).add(open_).add(published).add(forward).add(inward).add(nat)
    # What is invalid would not be translated. A router's word about a flow (related, ICMP) goes where the flow does.
    work.add(rule(forward, [iif(BRIDGE), ct_state("new", *_NEVER_DROPPED, "untracked"), accept]))
    work.add(rule(forward, [ct_status("dnat"), goto(published)]))
    work.add(rule(forward, [ct_state(*_NEVER_DROPPED), accept]))
    work.add(rule(published, [in_set(open_, ct_original_protocol, ct_original_dport), accept]))
    work.add(rule(published, [mark(KNOWN), accept]))
    work.add(rule(published, [reject(tcp_reset=True)]))
    work.add(rule(published, [reject(code="port-unreachable")]))
    work.add(rule(inward, [iif.is_not(UPLINK), accept]))
    work.add(rule(inward, [ct_state(*_NEVER_DROPPED), accept]))
    work.add(rule(inward, [ct_status("dnat"), accept]))
    work.add(rule(inward, [drop]))
    work.add(rule(nat, [oifname("uplink"), masquerade()]))
    with switch.filters() as kernel:
        kernel.commit(work)


# ---- In the host ----


@define(eq=False)
class HostTable:
    """Our table in the host, of all networks of this process that reach outside, for one version of IP. Thread-safe.

    Others who have something to do for an uplink (published ports) put chains and sets of their own into *table*, by `commit`.
    """

    table: Table
    namespace: tuple[int, int, str]  # and its family
    _kernel: Nftables
    _users: int = 0
    _lock: threading.Lock = field(factory=threading.Lock)

    @property
    def links(self) -> Set:
        """Our interfaces, by name."""
        return Set(self.table, "links", (IFNAME,))

    @property
    def addresses(self) -> Set:
        """The switches' ends of them."""
        return Set(self.table, "addresses", (IPV4 if self.table.family == "ip" else IPV6,))

    def commit(self, work: Transaction) -> tuple[int, ...]:
        """As `Nftables.commit`."""
        with self._lock:
            return self._kernel.commit(work)

    def chains(self) -> list[ListedChain]:
        """All chains of the host's, whoever made them."""
        with self._lock:
            return self._kernel.chains()

    def counted(self, chain: Chain) -> int:
        """How many packets the rules of *chain* have seen."""
        with self._lock:
            return sum(found.packets for found in self._kernel.rules(chain))

    def add(self, link: Uplink) -> None:
        """Let a network's packets pass."""
        self.commit(
            Transaction().add_elements(self.links, [Element(link.name)]).add_elements(self.addresses, [Element(link.there)]),
        )

    def remove(self, link: Uplink) -> None:
        """Forget it. Its containers have been taken off the network before that."""
        self.commit(
            Transaction().delete_elements(self.links, [Element(link.name)]).delete_elements(self.addresses, [Element(link.there)]),
        )

    def make(self) -> None:
        """Make the table, with no uplinks yet."""
        forward = Chain(self.table, "forward", hook="forward")
        out, back = Chain(self.table, "out"), Chain(self.table, "in")
        inward = Chain(self.table, "input", hook="input")
        nat = Chain(self.table, "postrouting", hook="postrouting", type="nat", priority=100)
        work = Transaction().add(self.table).add(self.links).add(self.addresses)
        for chain in (forward, out, back, inward, nat):
            work.add(chain)
        # Of others' flows too: what is accepted here is so by this table alone, and they are through.
        work.add(rule(forward, [ct_state(*_NEVER_DROPPED), accept]))
        work.add(rule(forward, [in_set(self.links, iifname), jump(out)]))
        work.add(rule(forward, [in_set(self.links, oifname), jump(back)]))
        # What conntrack cannot follow is not translated: it would leave with an address of ours, which nobody else knows.
        work.add(rule(out, [ct_state("invalid"), drop]))
        work.add(rule(out, [ct_status("dnat"), accept]))  # what is published is so to all
        # TCP heeds an error of ICMPv6 with its second packet only, a second later.
        refusals = [reject()] if self.table.family == "ip" else [reject(tcp_reset=True), reject()]
        for refusal in refusals:
            work.add(rule(out, [oifname(f"{PREFIX}*"), refusal]))  # of another network, perhaps of another process
        work.add(rule(back, [ct_status("dnat"), accept]))
        work.add(rule(back, [drop]))
        # Not only what is new: where the host does not track a port (notrack, for resolvers), it would be reached there.
        work.add(rule(inward, [ct_state(*_NEVER_DROPPED), accept]))
        work.add(rule(inward, [in_set(self.links, iifname), ct_state("invalid"), drop]))
        for refusal in refusals:
            work.add(rule(inward, [in_set(self.links, iifname), refusal]))
        source = ip_saddr if self.table.family == "ip" else ip6_saddr
        work.add(rule(nat, [in_set(self.addresses, source), masquerade()]))
        self.commit(work)

    def take(self) -> None:
        self._users += 1

    def leave(self) -> bool:
        """Whether nobody has use for it any more; it is closed then."""
        self._users -= 1
        if not self._users:
            self._kernel.close()
        return not self._users

    def abandon(self) -> None:
        """In a forked child."""
        self._kernel.close()


_tables: dict[tuple[int, int, str], HostTable] = {}  # by the network namespace that they are in, and the family
_tables_lock = threading.Lock()


def hold(stack: ExitStack, family: Literal["ip", "ip6"] = "ip") -> HostTable:
    """Our table in the namespace that the calling thread is in, until *stack* is closed. Raises: UnsupportedError, SetupError."""
    status = os.stat("/proc/thread-self/ns/net")
    namespace = status.st_dev, status.st_ino, family
    with _tables_lock:
        found = _tables.get(namespace)
        if found is None:
            kernel = Nftables.here()
            try:
                found = HostTable(Table(family, f"{PREFIX}-{os.getpid()}-{secrets.token_hex(4)}", owner=True), namespace, kernel)
                found.make()
            except BaseException:
                kernel.close()
                raise
            _tables[namespace] = found
        found.take()
    stack.callback(_leave, found)
    return found


def _leave(table: HostTable) -> None:
    with _tables_lock:
        if table.leave():
            _tables.pop(table.namespace, None)


def _after_fork_in_child() -> None:
    """A copy of the socket would keep the table when the parent has ended."""
    global _tables_lock
    _tables_lock = threading.Lock()
    for table in _tables.values():
        table.abandon()
    _tables.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


# ---- What may be in the way ----


def check_forwarding(ways: list[WayOut]) -> None:
    """Refuse a host that does not forward: answers would be dropped where they come in. Raises: UnsupportedError.

    Refused: to switch it on. That opens the host to whoever is on its networks, and after kill -9 nobody would switch it off again.
    """
    names = names_of(ways) or ["all"]
    closed = [name for name in names if not _forwards(name)]
    if closed:
        raise UnsupportedError(
            f"this host does not forward packets (net.ipv4.conf.{closed[0]}.forwarding is 0), which networks that reach outside take",
            feature="ip_forward",
            remedy="sysctl -w net.ipv4.ip_forward=1, or give uplink='slirp4netns', or internal=True",
        )


def names_of(ways: list[WayOut]) -> list[str]:
    """The interfaces that lead outside, each once."""
    return list(dict.fromkeys(filter(None, (_name_of(way.index) for way in ways))))


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""  # it went while we looked


def _forwards(name: str) -> bool:
    try:
        with open(f"{_CONF}/{name}/forwarding", encoding="ascii") as file:
            return file.read().strip() != "0"
    except FileNotFoundError:
        return True


def probe(switch: Switch, link: Uplink, ways: list[WayOut]) -> None:
    """See whether what containers send gets past the host's other rules. Without a default route there is nowhere to send it.

    Raises: UnsupportedError: it does not; the remedy names the rules that are in the way, if they can be seen.
    """
    nearest = [way.gateway for way in ways if way.gateway is not None and not way.gateway.is_link_local]
    targets = [*_NOWHERE[link.there.version], *nearest] if ways else []
    if not targets:
        return
    host = link.host
    # Chains of this probe alone, before and behind all others; they cost the host's packets something, so they are there for it only.
    arrivals = Chain(host.table, f"arrivals-{link.name}", hook="prerouting", priority=_FIRST)
    passed = Chain(host.table, f"passed-{link.name}", hook="forward", priority=_LAST)
    work = Transaction().add(arrivals).add(passed)
    # One that passes is enough: others may well forbid addresses of no use, or of their own network.
    for target in targets:
        test = [iifname(link.name), (ip_daddr if target.version == 4 else ip6_daddr)(target), udp_dport(_DISCARD), counter()]
        work.add(rule(arrivals, test)).add(rule(passed, [*test, drop]))
    host.commit(work)
    try:
        if not _gets_through(switch, host, targets, arrivals, passed):
            raise in_the_way([chain for chain in host.chains() if chain.table != host.table.name], host.table.family, PREFIX)
    finally:
        host.commit(Transaction().delete(arrivals).delete(passed))


def _gets_through(switch: Switch, host: HostTable, targets: Sequence[Address], arrivals: Chain, passed: Chain) -> bool:
    """Usually both chains have counted one before sendto returns."""
    family = socket.AF_INET if targets[0].version == 4 else socket.AF_INET6
    fd = switch.socket(domain=family, kind=socket.SOCK_DGRAM, protocol=0)
    deadline, pause = time.monotonic() + _PROBE_S, 0.0005
    has_arrived = False
    with socket.socket(fileno=fd) as sender:
        while True:
            for target in targets:
                with suppress(OSError):  # an answer to the one before: somebody rejects it
                    sender.sendto(b"", (str(target), _DISCARD))
            if host.counted(passed):
                return True
            if not has_arrived and host.counted(arrivals):
                has_arrived, deadline = True, time.monotonic() + _PASSING_S
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
