"""Shapes at work: the queues of a network's ports, where nothing inside a container reaches them.

Theory of operation
-------------------
What goes *to* a container leaves the switch by its port, whose own queues shape it. What comes *from* a container arrives there, and what
arrives has no queue. So it is sent through an intermediate functional block (ifb) of the switch: out by that, through its queues, and it goes on as
if it had just arrived. Queues on the container's own interface would be simpler, and a program with CAP_NET_ADMIN in there could remove them.

It is nftables that sends it there (``fwd`` of a netdev chain behind all others of the port), not tc's ingress and mirred: those see packets
before the rules that hold a container to its addresses do, and what has come back from an ifb passes neither a second time.

An ifb that is not used any more waits for the next container: removing interfaces takes the kernel milliseconds. The network's end ends them.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandbox.errors import SandboxError, SetupError, UnsupportedError
from sandbox.net import nft, qdisc
from sandbox.net.rtnetlink import name_of_port
from sandbox.net.shape import Queues, Shape, queues_of

if TYPE_CHECKING:
    from sandbox._networks.switch import Switch
    from sandbox.net.rtnetlink import Requests

FIRST_IFB: Final = 1 << 24  # of the indices that we choose: far from those of ports
LAST_OF_PORT: Final = 1000  # priority of our chain: whoever else looks at what comes in at a port does so before
_TABLE: Final = nft.Table("netdev", "shaping")
_known: set[str] = set()  # kinds of queues that this kernel has


@define(eq=False)
class _Shaped:
    """One port. *dropped* is of shapes that it had before: towards the container, and from it."""

    ifb: int
    chain: nft.Chain
    queues: Queues
    generation: int
    dropped: list[int] = field(factory=lambda: [0, 0])


class Shaping:
    """Of one network. The caller holds the network's lock."""

    def __init__(self, switch: Switch, requests: Requests, mtu: int, *, table: nft.Table = _TABLE) -> None:
        self._switch, self._requests, self._mtu, self._table = switch, requests, mtu, table
        self._filters: nft.Nftables | None = None  # from the first shape on
        self._shaped: dict[int, _Shaped] = {}  # by the index of the port
        self._spare: list[int] = []
        self._ifbs = 0
        self._generation = 0

    def close(self) -> None:
        """Close the socket; what there is goes with the switch. Twice is fine."""
        filters, self._filters = self._filters, None
        if filters is not None:
            filters.close()
        self._shaped.clear()

    def _commit(self, work: nft.Transaction) -> None:
        if self._filters is None:
            self._filters = self._switch.filters()
        self._filters.commit(work)

    @property
    def devices(self) -> int:
        """How many intermediate functional blocks there are."""
        return self._ifbs

    def check(self, shape: Shape) -> None:
        """Refuse what cannot be; nothing is touched. Raises: UsageError; UnsupportedError: the kernel has no such queues."""
        queues_of(shape, mtu=self._mtu)
        for kind in shape.kinds:
            if kind not in _known:
                self._probe(kind)
                _known.add(kind)

    def _probe(self, kind: str) -> None:
        try:
            self._requests.send(qdisc.probe(kind), f"ask for {kind}")
        except SetupError as error:
            if error.errno == errno.EINVAL:  # it knows them, and misses their options
                return
            if error.errno != errno.ENOENT:
                raise
        feature = f"sch_{kind}"
        what = "limit rates" if kind == "tbf" else "delay, lose or double packets"
        remedy = f"modprobe {feature}, or boot a kernel with CONFIG_NET_{feature.upper()} (Debian's have it)"
        raise UnsupportedError(f"shape: this kernel cannot {what}, it has no {feature}", feature=feature, remedy=remedy)

    def apply(self, port: int, shape: Shape | None) -> None:
        """Give a port this shape instead of the one that it has. Raises: as `check`; SetupError: then it has none."""
        if shape is None or shape.is_nothing:
            self.forget(port)
            return
        self.check(shape)
        queues = queues_of(shape, mtu=self._mtu)
        self._generation += 1
        before = self._shaped.get(port)
        try:
            if before is not None:
                before.dropped = list(self.drops(port))
            self._install(port, queues)
            if before is None:
                self._shaped[port] = self._divert(port, queues)
            else:
                self._install(before.ifb, queues)
                before.queues, before.generation = queues, self._generation
        except BaseException:
            with contextlib.suppress(SandboxError):
                self.forget(port)
            with contextlib.suppress(SandboxError):
                self._requests.send(qdisc.removal(port), "remove queues")
            raise

    def _install(self, index: int, queues: Queues) -> None:
        messages = qdisc.installation(queues, index, self._generation)
        try:
            for message, what in messages:
                self._requests.send(message, what)
        except SetupError as error:
            # Kernels of 2025 want no other netem beside one that doubles packets, and count the one that it is to replace (check_netem_in_tree).
            if error.errno != errno.EINVAL or queues.line is None:
                raise
            self._requests.send(qdisc.removal(index), "remove queues")
            for message, what in messages:
                self._requests.send(message, what)

    def _divert(self, port: int, queues: Queues) -> _Shaped:
        ifb = self.take_ifb(port)
        chain = nft.Chain(self._table, f"from-{port}", hook="ingress", priority=LAST_OF_PORT, device=name_of_port(port))
        try:
            self._install(ifb, queues)
            self._commit(nft.Transaction().add(self._table, exist_ok=True).add(chain).add(nft.rule(chain, [nft.forward(ifb)])))
        except BaseException:
            self.let_go(ifb)
            raise
        return _Shaped(ifb, chain, queues, self._generation)

    def take_ifb(self, port: int) -> int:  # noqa: ARG002 - it matters where several processes do so
        """An intermediate functional block for that port alone, until `let_go`."""
        return self._spare.pop() if self._spare else self.make_ifb(FIRST_IFB + self._ifbs)

    def let_go(self, index: int) -> None:
        """Nothing goes through it any more."""
        self._spare.append(index)

    def make_ifb(self, index: int) -> int:
        """Make that one. Raises: UnsupportedError, SetupError."""
        try:
            self._requests.send(qdisc.ifb(index, f"i{index - FIRST_IFB:010d}", self._mtu), "make an intermediate functional block")
        except UnsupportedError:
            remedy = "modprobe ifb, or boot a kernel with CONFIG_IFB (Debian's have it)"
            raise UnsupportedError("shape: this kernel cannot shape what comes from a container", feature="ifb", remedy=remedy) from None
        self._ifbs += 1
        return index

    def forget(self, port: int) -> None:
        """Take the shape of a port away, whether the port lives or not."""
        shaped = self._shaped.pop(port, None)
        if shaped is None:
            return
        try:
            self._commit(nft.Transaction().flush(shaped.chain).delete(shaped.chain))
        except SetupError as error:
            if error.errno != errno.ENOENT:  # it has gone with the port
                raise
        self.let_go(shaped.ifb)
        try:
            self._requests.send(qdisc.removal(port), "remove queues")
        except SetupError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):  # the port has gone
                raise

    def is_shaped(self, port: int) -> bool:
        """Whether it has a shape."""
        return port in self._shaped

    def drops(self, port: int) -> tuple[int, int]:
        """How many packets the shapes of a port have dropped: towards the container, and from it."""
        shaped = self._shaped.get(port)
        if shaped is None:
            return 0, 0
        handle = qdisc.innermost(shaped.queues, shaped.generation)
        if handle is None:
            raise AssertionError("a shape that is nothing is not kept")
        found = [before + self._drops(index, handle) for before, index in zip(shaped.dropped, (port, shaped.ifb), strict=True)]
        return found[0], found[1]

    def _drops(self, index: int, handle: int) -> int:
        (answer,) = self._requests.ask(qdisc.drops_request(index, handle), "read what a queue has dropped")
        return qdisc.drops_of(answer)
