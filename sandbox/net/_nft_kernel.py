"""What is said to the nf_tables of one network namespace, and what it answers. See `sandbox.net.nft`."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from attrs import frozen

from sandbox.errors import ProtocolError, SandboxError, SetupError, UnsupportedError
from sandbox.net import _nft_wire as wire
from sandbox.net import netlink
from sandbox.net._nft_objects import INTERVAL_END, POLICIES, Chain, Set, Table, Transaction
from sandbox.net._nft_wire import NETLINK_NETFILTER, Attribute, Message, text

_CHUNK: Final = 1 << 18
_WAIT_S: Final = 10
_MOST_MESSAGES: Final = 1 << 20  # of a listing: more than any machine has, and an end
_SOL_NETLINK, _EXT_ACK, _CAP_ACK = 270, 11, 10  # <linux/netlink.h>
_SO_SNDBUFFORCE: Final = 32  # <asm-generic/socket.h>
_SPARE: Final = 4096  # what netlink_sendmsg wants beside the message itself


@frozen
class Listed:
    """A rule as the kernel has it. *packets*, *octets*: of its first counter; 0 where it has none. *expressions*: names of its steps."""

    handle: int
    comment: str | None
    packets: int
    octets: int
    expressions: tuple[str, ...]


@frozen
class ListedChain:
    """A chain as the kernel has it, whoever made it. *hook*: the kernel's number; None, and no policy: it is jumped to."""

    family: str
    table: str
    name: str
    hook: int | None
    priority: int
    policy: str | None


class Nftables:
    """A netlink socket to the nf_tables of one network namespace, which is closed with this; *fd* is ours from now on.

    One request at a time: the caller has a lock. A forked child has to close its copy, or tables of this owner outlive the parent.
    """

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER, fileno=fd)
        # The kernel's own time-out: with one of Python's, MSG_DONTWAIT would wait for it.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _WAIT_S, 0))
        for option in (_EXT_ACK, _CAP_ACK):
            self._sock.setsockopt(_SOL_NETLINK, option, 1)
        self._sequence = 1

    @classmethod
    def here(cls) -> Nftables:
        """Of the namespace that the calling thread is in. Raises: UnsupportedError: the kernel has no netfilter; SetupError."""
        try:
            return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER).detach())
        except OSError as error:
            raise _no_socket(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket's descriptor, or -1."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket, and with it remove the tables that it owns."""
        self._sock.close()

    # ---- Changes ----

    def commit(self, work: Transaction) -> tuple[int, ...]:
        """Have all of it done, or nothing; gives the handles of the rules that were added, in their order.

        Raises: SetupError: the kernel refused a step, which is named; UnsupportedError: it has no nf_tables, or no owners of tables.
        """
        if not work.steps:
            return ()
        first = self._next(len(work.steps) + 2)
        last = first + len(work.steps)
        self._send(work.encode(first), "change packet filters")
        handles: list[int] = []
        for kind, flags, sequence, body in self._answers():
            if kind == netlink.ERROR:
                code, about, words = wire.error_of(body, flags)
                if code:
                    self._drain()
                    raise _refused(work, about - first - 1, code, words)
                if about == last:
                    break
            elif kind == wire.SUBSYSTEM << 8 | wire.NEWRULE and first < sequence <= last:
                handles.append(_number(dict(wire.decode(kind, flags, body).attributes), 3))
        return tuple(handles)

    # ---- Listings ----

    def chains(self, family: str = "unspec") -> list[ListedChain]:
        """All chains of *family*, or of all families, whoever made them. Raises: SetupError, UnsupportedError."""
        return [_chain(message) for message in self._dump(wire.GETCHAIN, family, (), "list chains")]

    def rules(self, chain: Chain) -> list[Listed]:
        """The rules of *chain*, in their order. Raises: SetupError, UnsupportedError."""
        # The kernel heeds table and chain of such a request from Linux 4.14 on.
        asked = ((1, text(chain.table.name)), (2, text(chain.name)))
        return [_listed(message) for message in self._dump(wire.GETRULE, chain.table.family, asked, f"list rules of {chain.name}")]

    def elements(self, where: Set) -> list[bytes]:
        """The keys of a set's elements, as the kernel has them; of an interval its beginning. Raises: SetupError, UnsupportedError.

        For a moment after thousands were added the kernel still moves them to a larger table (rhashtable), and a list has not all of them.
        """
        asked = ((1, text(where.table.name)), (2, text(where.name)))
        found: list[bytes] = []
        for message in self._dump(wire.GETSETELEM, where.table.family, asked, f"list elements of {where.name}"):
            for _, element in _tree(dict(message.attributes), 3):
                attributes = dict(_nested(element))
                if not _number(attributes, 3) & INTERVAL_END:
                    found.append(_bytes(dict(_tree(attributes, 1)), 1))
        return found

    def tables(self) -> list[Table]:
        """All tables, whoever made them. Raises: SetupError, UnsupportedError."""
        found: list[Table] = []
        for message in self._dump(wire.GETTABLE, "unspec", (), "list tables"):
            attributes = dict(message.attributes)
            found.append(Table(message.family, _string(attributes, 1), owner=bool(_number(attributes, 2) & 2)))  # type: ignore[arg-type]  # the kernel's word
        return found

    def _dump(self, kind: int, family: str, asked: tuple[Attribute, ...], what: str) -> Iterator[Message]:
        mine = self._next(1)
        self._send(wire.encode(Message(kind, family, netlink.REQUEST | netlink.DUMP, asked), mine), what)
        for got, flags, sequence, body in self._answers():
            if sequence != mine:
                continue
            if got == netlink.DONE:
                return
            if got == netlink.ERROR:
                code = wire.error_of(body, flags)[0]
                raise _unsupported(what) if code == errno.EOPNOTSUPP else SetupError(what, code or errno.EIO, step="nftables")
            yield wire.decode(got, flags, body)

    # ---- The socket ----

    def _next(self, count: int) -> int:
        first, self._sequence = self._sequence, self._sequence + count
        if self._sequence > 0x7FFFFFFF:  # 32 bits, of which we use 31
            first, self._sequence = 1, 1 + count
        return first

    def _send(self, data: bytes, what: str) -> None:
        if len(data) + _SPARE > self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF):
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(data) + _SPARE)
        try:
            self._sock.sendto(data, (0, 0))  # with a destination, the kernel asks for the rights of whoever sends, and not of who opened it too
        except OSError as error:
            raise SetupError(what, error.errno or errno.EIO, step="nftables") from error

    def _answers(self) -> Iterator[netlink.Message]:
        """What the kernel sends, message by message, until the caller has what it needs."""
        for _ in range(_MOST_MESSAGES):
            try:
                data, sender = self._sock.recvfrom(_CHUNK)
            except OSError as error:
                code = errno.ETIMEDOUT if isinstance(error, BlockingIOError) else error.errno or errno.EIO
                raise SetupError("wait for an answer of nf_tables", code, step="nftables") from error
            if sender[0] == 0:  # the kernel, and no other process
                yield from netlink.messages(data)
        raise ProtocolError("nf_tables does not come to an end")

    def _drain(self) -> None:
        """Take out what else has been said about a request that failed; it is all there."""
        try:
            while self._sock.recv(_CHUNK, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            return


def _no_socket(error: OSError) -> SandboxError:
    if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        return _unsupported("open a socket to netfilter")
    return SetupError("open a socket to netfilter", error.errno or errno.EIO, step="nftables")


def _unsupported(what: str) -> UnsupportedError:
    remedy = "modprobe nf_tables, or boot a kernel with CONFIG_NF_TABLES"
    return UnsupportedError(f"{what}: this kernel has no nf_tables", feature="nf_tables", remedy=remedy)


def _refused(work: Transaction, at: int, code: int, words: str) -> SandboxError:
    """What to say of the step at place *at*; -1 is the beginning of the batch, which is about all of it."""
    if not 0 <= at < len(work.steps):
        what = "change packet filters"
        return _unsupported(what) if code == errno.EOPNOTSUPP else SetupError(what, code, step="nftables", hint=words)
    step = work.steps[at]
    if step.needs and code in (errno.EOPNOTSUPP, errno.EINVAL):
        return UnsupportedError(f"{step.words}: this kernel has no tables with an owner", feature=step.needs, remedy="boot Linux 5.12 or later")
    if code in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
        family = step.message.family
        return UnsupportedError(
            f"{step.words}: this kernel does not know it in family {family}", feature=f"nf_tables {family}", remedy=f"modprobe nf_tables_{family}"
        )
    return SetupError(step.words, code, step="nftables", hint=words or _HINTS.get(code, ""))


_HINTS: Final = {
    errno.ENOENT: "a table, chain, set or element is missing, or the kernel has no module for one of the steps (nft_nat, nft_masq ...)",
    errno.EEXIST: "there is one of that name or value already",
    errno.EPERM: "it takes CAP_NET_ADMIN, and a table with an owner takes its owner",
    errno.EBUSY: "it is still in use",
}


# ---- Reading ----


def _nested(value: wire.Value | None) -> tuple[Attribute, ...]:
    return value if isinstance(value, tuple) else ()


def _tree(attributes: dict[int, wire.Value], number: int) -> tuple[Attribute, ...]:
    return _nested(attributes.get(number))


def _bytes(attributes: dict[int, wire.Value], number: int) -> bytes:
    value = attributes.get(number, b"")
    return value if isinstance(value, bytes) else b""


def _string(attributes: dict[int, wire.Value], number: int) -> str:
    return _bytes(attributes, number).rstrip(b"\0").decode(errors="replace")


def _number(attributes: dict[int, wire.Value], number: int) -> int:
    return int.from_bytes(_bytes(attributes, number), "big")


def _chain(message: Message) -> ListedChain:
    attributes = dict(message.attributes)
    hook = dict(_tree(attributes, 4))
    policy = POLICIES[_number(attributes, 5)] if 5 in attributes and _number(attributes, 5) < len(POLICIES) else None
    priority = struct.unpack(">i", _bytes(hook, 2))[0] if len(_bytes(hook, 2)) == 4 else 0
    return ListedChain(message.family, _string(attributes, 1), _string(attributes, 3), _number(hook, 1) if hook else None, priority, policy)


def _listed(message: Message) -> Listed:
    attributes = dict(message.attributes)
    steps = [dict(_nested(tree)) for _, tree in _tree(attributes, 4)]
    counted = dict(next((_tree(step, 2) for step in steps if _string(step, 1) == "counter"), ()))
    names = tuple(_string(step, 1) for step in steps)
    return Listed(_number(attributes, 3), _comment(_bytes(attributes, 7)), _number(counted, 2), _number(counted, 1), names)


def _comment(data: bytes) -> str | None:
    """Of nft's records: kind, length, value."""
    while len(data) >= 2 and len(data) >= 2 + data[1]:
        if data[0] == 0:
            return data[2 : 2 + data[1]].rstrip(b"\0").decode(errors="replace")
        data = data[2 + data[1] :]
    return None
