"""The short way of published ports: packets of flows that are known go past the switch's own stack.

Theory of operation
-------------------
On its way to a published port a packet passes two stacks that translate, the host's and the switch's. The switch's part is what lacks to the
speed of a pair and a bridge made by hand. So programs of BPF at the uplink and at the container's port (`net.shortcut`) translate packets of TCP
themselves and hand them to the other end, which spares them conntrack, rules, routes and the bridge. Who decides has not changed:

- A flow is known only after the switch's rules have let a packet of it through, which a chain behind all others marks (`marking`); for a quarter
  of a second. Then one packet goes the long way again, and all that the rules ask is asked anew. So conntrack's times go on, too.
- Whereto a packet may go is not in what is known of flows, but in *slots* that are written here alone, one for each published port. A port
  that is withdrawn loses its slot first: from that moment on no packet of its flows passes but by the rules.
- What comes from a container is taken for an answer only at the port, with the address and from the port that the slot says; so a
  container that makes up frames can say nothing here that it could not say as itself.
- Packets from a container would pass by its shape: tc's ingress comes before the packet filters that lead to it. A port that is shaped has no slots.

The switch's conntrack sees few packets of such a flow. So it does not ask whether sequence numbers are in the window; the host's does, and what it
finds invalid is dropped there. What ends connections it believes without that as well. What waits for an acknowledgement may do so for as long
as a connection lives.

Maps and programs live by descriptors of this process and by the interfaces in the switch: they go with the last of these, after kill -9 as well.
In a network that is kept the switch lasts, and others publish there too: see `kept_shortcut`.
Where any of it cannot be had (bpf(2) is refused, tc knows no such filters, conntrack has no such settings), there is the long way.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final, Self

from attrs import define, field, frozen

from sandbox._sys import features
from sandbox._sys.fds import Fd
from sandbox.errors import SandboxError, SetupError
from sandbox.net.addresses import mac_of
from sandbox.net.rtnetlink import UPLINK, Batch

if TYPE_CHECKING:
    from sandbox._networks.live import Live
    from sandbox._networks.places import Place
    from sandbox._networks.published import Entry
    from sandbox._networks.shaping import Shaping
    from sandbox._networks.switch import Switch
    from sandbox._networks.uplink import Uplink
    from sandbox._session import Asked
    from sandbox.net.nft import Table, Transaction
    from sandbox.net.rtnetlink import Requests

_CONNTRACK: Final = "/proc/sys/net/netfilter/nf_conntrack_tcp_"
# In this order: what not every kernel has, first (ignore_invalid_rst: Linux 5.14). The times are that of a connection that is established.
_SETTINGS: Final = {
    f"{_CONNTRACK}ignore_invalid_rst": "1",
    f"{_CONNTRACK}timeout_unacknowledged": "432000",
    f"{_CONNTRACK}timeout_max_retrans": "432000",
    f"{_CONNTRACK}be_liberal": "1",
}
_BEHIND_THE_WALLS: Final = 1  # priority of our chain: it sees what all others have let through
_INDEX: Final = struct.Struct("=I")


@frozen
class _Programs:
    """What there is from the first port on."""

    slots: Fd
    flows: Fd
    outward: Fd
    learner: Fd

    def close(self) -> None:
        for one in (self.slots, self.flows, self.outward, self.learner):
            one.close()


@frozen
class Inward:
    """The uplink's program for one version of IP."""

    version: int
    program: Fd


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@define(eq=False)
class Shortcut:
    """Of one network. Thread-safe: it takes the network's lock."""

    _switch: Switch
    _requests: Requests
    _shaping: Shaping
    _uplink: Uplink | None
    _gateway: IPv4Address
    _mtu: int
    _lock: threading.RLock
    # All by version of IP.
    _programs: dict[int, _Programs | None] = field(factory=dict[int, "_Programs | None"])  # None: they cannot be had
    _fitted: set[tuple[int, int]] = field(factory=set[tuple[int, int]])  # and port: who have the programs, or are about to
    _slots: dict[tuple[int, int], tuple[Entry, Place]] = field(factory=dict[tuple[int, int], tuple["Entry", "Place"]])
    _fitting: list[Asked] = field(factory=list["Asked"])

    @classmethod
    def of(cls, live: Live) -> Self:
        """That of a network."""
        return cls(live.switch, live.requests, live.shaping, live.uplink, live.addresses.gateway, live.spec.mtu, live.lock)

    def flows(self, version: int = 4) -> Fd | None:
        """The map of flows, for looking only; None: all packets go the long way."""
        programs = self._programs.get(version)
        return None if programs is None else programs.flows

    def lead(self, entries: Iterable[Entry], place: Place, mark: Callable[[], None]) -> None:
        """Have flows to these ports, all of one version of IP, which lead to *place*, take the short way where there is one. Does not fail.

        *mark* has packets of flows that may be known be marked from then on, by the rules of `marking`.
        """
        wanted = [entry for entry in entries if entry.held.port.protocol == "tcp"]
        if not wanted:
            return
        version = wanted[0].held.address.version
        with self._lock:
            if not self._begun(version, mark):
                return
            self._fit(version, place.port)
            from sandbox.net.shortcut import slot_of

            for entry in wanted:
                at = version, slot_of(entry.inner)
                if at not in self._slots:  # else another port's, which lives long: this one takes the long way
                    self._slots[at] = entry, place
                    try:
                        self._write(at)
                    except SetupError:  # it is not open then
                        del self._slots[at]

    def end(self, entries: Iterable[Entry]) -> None:
        """Have none of these flows take the short way any more, from now on. Raises: SetupError."""
        ended = {id(entry) for entry in entries}
        with self._lock:
            for at in [at for at, (entry, _) in self._slots.items() if id(entry) in ended]:
                self._write(at, is_open=False)
                del self._slots[at]

    def before_shape(self, port: int) -> None:
        """What comes by *port* is about to be shaped: it takes the long way until `after_shape`. Raises: SetupError."""
        for at, (_, place) in self._slots.items():
            if place.port == port:
                self._write(at, is_open=False)

    def after_shape(self, port: int) -> None:
        """It is shaped now, or not any more."""
        for at, (_, place) in self._slots.items():
            if place.port == port:
                self._write(at)

    def settle(self) -> None:
        """Wait until the ports that have been led have the programs. One that does not get them has its packets take the long way."""
        fitting, self._fitting = self._fitting, []
        for asked in fitting:
            with suppress(SandboxError):
                self._switch.answer(asked)

    def close(self) -> None:
        """Let go of all; what the interfaces have goes with them. Twice is fine."""
        self.settle()
        self.abandon()

    def abandon(self) -> None:
        """As `close`, in a forked child: what has been asked is the parent's."""
        programs = self._programs
        self._programs = {4: None, 6: None}
        for one in programs.values():
            if one is not None:
                one.close()
        self._slots.clear()

    # ---- Steps ----

    def _write(self, at: tuple[int, int], *, is_open: bool = True) -> None:
        """Readers may be at it meanwhile: the port is put in last, and taken out before anything else is changed."""
        version, index = at
        programs = self._programs.get(version)
        if programs is None:
            return
        from sandbox._sys import bpf
        from sandbox.net.shortcut import slot

        entry, place = self._slots[at]
        address = place.address if version == 4 else place.address6
        if address is None:
            raise AssertionError("a port is published for an address that is none")
        is_open = is_open and not self._shaping.is_shaped(place.port)
        mac, bridge = _octets(place.endpoint.mac), _octets(mac_of(self._gateway))
        try:
            for inner in (0, entry.inner) if is_open else (0,):
                value = slot(inner, place.port, address, entry.held.port.number, mac=mac, bridge_mac=bridge)
                bpf.update(programs.slots.fileno(), _INDEX.pack(index), value)
        except OSError as error:
            raise SetupError("write the slot of a published port", error.errno or 0, step="network") from error

    def _begun(self, version: int, mark: Callable[[], None]) -> bool:
        if version not in self._programs:
            self._programs[version] = None
            if not self._switch.is_ordinary and self._is_offered():
                with suppress(OSError, SandboxError):  # there is the long way
                    self._programs[version] = self._begin(version, mark)
        return self._programs[version] is not None

    def _is_offered(self) -> bool:
        """Whether this kernel has what it takes, and lets us."""
        return features.packet_programs()

    def _begin(self, version: int, mark: Callable[[], None]) -> _Programs:
        """Load the programs, and have the uplink's run; the others have nothing to do before it does."""
        from sandbox._sys import bpf
        from sandbox.net import shortcut as made

        uplink = self._uplink
        way = uplink if version == 4 or uplink is None else uplink.six
        if uplink is None or way is None:
            raise SetupError("lead the short way", 0, step="network")
        self._switch.write(_SETTINGS)
        with ExitStack() as stack:
            slots, flows = (
                stack.enter_context(Fd(bpf.make_map(kind, key, value, entries, f"sandbox_{name}")))
                for kind, key, value, entries, name in (
                    (bpf.ARRAY, _INDEX.size, made.FAMILIES[version].slot.size, made.SLOTS, "slots"),
                    (bpf.LRU_HASH, made.FAMILIES[version].flow.size, made.KNOWN.size, made.FLOWS, "flows"),
                )
            )
            macs = (_octets(mac_of(IPv4Address(int(address)))) for address in (self._gateway, uplink.there, uplink.here))
            ends = made.Ends(slots.fileno(), flows.fileno(), UPLINK, way.there, self._mtu, *macs)
            inward, outward, learner = (
                stack.enter_context(Fd(bpf.load_program(bpf.SCHED_CLS, program(ends), f"sandbox_{program.__name__}")))
                for program in (made.inward, made.outward, made.learner)
            )
            mark()
            self._begin_inward(Inward(version, inward))
            stack.pop_all()
            return _Programs(slots, flows, outward, learner)
        raise AssertionError("unreachable")

    def _begin_inward(self, inward: Inward) -> None:
        """Have the uplink's run, whose descriptor is closed then."""
        from sandbox.net import qdisc

        messages = [qdisc.clsact(UPLINK), qdisc.program(UPLINK, "ingress", inward.program.fileno(), version=inward.version)]
        self._requests.send(messages, "have a program look at what comes by the uplink")
        inward.program.close()

    def _fit(self, version: int, port: int) -> None:
        """Nobody waits for it: the kernel may be removing the interfaces of a container before, which takes it milliseconds."""
        programs = self._programs[version]
        if programs is None or (version, port) in self._fitted:
            return
        from sandbox.net import qdisc

        if len(self._fitting) > 1:
            self.settle()  # long since
        first = Batch.of([qdisc.clsact(port), qdisc.program(port, "ingress", version=version)])
        second = Batch.of(qdisc.program(port, "egress", version=version))
        with suppress(SandboxError):
            self._fitting.append(self._switch.ask((first, programs.outward.fileno()), (second, programs.learner.fileno())))
            self._fitted.add((version, port))


def marking(table: Table) -> Transaction:
    """Mark what may be known: packets of connections that are established, that came to a published port, and whose client kept its own port.

    No other packet that comes by the uplink leaves with a mark.
    """
    from sandbox.net.nft import Chain, Transaction, accept, ct_original_dport, ct_state, ct_status, iif, l4proto, mark_as, rule, set_mark

    chain = Chain(table, "shortcut", hook="forward", priority=_BEHIND_THE_WALLS)
    known = [iif(UPLINK), l4proto("tcp"), ct_state("established"), ct_status("dnat"), ct_status("snat", negate=True)]
    work = Transaction().add(chain).add(rule(chain, [*known, mark_as(ct_original_dport), accept]))
    return work.add(rule(chain, [iif(UPLINK), set_mark(0)]))
