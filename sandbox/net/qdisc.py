"""Messages of rtnetlink about queueing disciplines, and the devices that shaping takes. Pure.

Made here rather than by pyroute2: its token bucket knows neither rates of more than 32 bits (RATE64) nor a burst in bytes (BURST), and it reads
/proc/net/psched when it is imported. Layouts: linux/pkt_sched.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from sandbox.net.netlink import ACK, CREATE, ECHO, EXCL, REPLACE, REQUEST, attribute, attributes, message
from sandbox.net.rtnetlink import MARK_FD
from sandbox.net.shape import MOST, Bucket, Line, Queues

_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_TC: Final = struct.Struct("=BxxxiIII")  # tcmsg: family, index, handle, parent, info
_RATE: Final = struct.Struct("=BBHhHI")  # tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate
_NETEM: Final = struct.Struct("=6I")  # tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter

_NEWLINK, _DELLINK, _NEWQDISC, _DELQDISC, _GETQDISC, _NEWTFILTER = 16, 17, 36, 37, 38, 44
_ACK: Final = REQUEST | ACK
_ROOT: Final = 0xFFFFFFFF  # TC_H_ROOT
_KIND, _OPTIONS, _STATS2 = 1, 2, 7
_STATS_QUEUE: Final = 3  # gnet_stats_queue: qlen, backlog, drops, requeues, overlimits
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_LINKLAYER_ETHERNET: Final = 1  # said, the kernel asks for no table of rates
_TICK_SHIFT: Final = 6  # PSCHED_SHIFT: times of these messages count in 64 ns
_IFNAME, _LINKINFO, _INFO_KIND, _MTU = 3, 18, 1, 4
_UP: Final = 1
_CLSACT: Final = 0xFFFFFFF1  # TC_H_CLSACT, and what filters hang below: TC_H_MIN_INGRESS, _EGRESS
_DIRECTIONS: Final = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_DIRECT = 6, 7, 8, 1  # TCA_BPF_*; what the program says is done
_FIRST: Final = {4: 1 << 16 | socket.htons(0x0800), 6: 2 << 16 | socket.htons(0x86DD)}  # a filter's priority, and its protocol: one to each
LOOPBACK: Final = 1  # its index, in each namespace
_INNER: Final = 0x8000
_GENERATIONS: Final = 0x7FFE  # so that no inner handle is 0xFFFF, which means ingress


def _qdisc(kind: int, index: int, flags: int, *, handle: int = 0, parent: int = _ROOT, name: str = "", options: bytes | None = None) -> bytes:
    body = _TC.pack(0, index, handle, parent, 0)
    if name:
        body += attribute(_KIND, name.encode() + b"\0")
    if options is not None:
        body += attribute(_OPTIONS, options)
    return message(kind, flags, body)


def handles(generation: int) -> tuple[int, int]:
    """Of the outer and the inner queue of an interface's n-th shape. With the handle of its predecessor it would be changed, not replaced."""
    major = 1 + generation % _GENERATIONS
    return major << 16, (major | _INNER) << 16


def installation(queues: Queues, index: int, generation: int) -> list[tuple[bytes, str]]:
    """Make *queues* those of an interface, in the place of what it had; each message, and what it is for.

    The bucket is outside: it cuts what TCP has joined into packets before the line delays, loses or doubles each of them, and what it lets
    wait waits at the end of the line.
    """
    outer, inner = handles(generation)
    found: list[tuple[bytes, str]] = []
    if queues.bucket is not None:
        found.append((_replaced(index, _ROOT, outer, "tbf", tbf(queues.bucket)), "limit the rate of an interface"))
    if queues.line is not None:
        parent, handle = (_ROOT, outer) if queues.bucket is None else (outer | 1, inner)
        found.append((_replaced(index, parent, handle, "netem", netem(queues.line)), "delay and lose packets of an interface"))
    return found


def _replaced(index: int, parent: int, handle: int, name: str, options: bytes) -> bytes:
    return _qdisc(_NEWQDISC, index, _ACK | CREATE | REPLACE, handle=handle, parent=parent, name=name, options=options)


def innermost(queues: Queues, generation: int) -> int | None:
    """The handle of the queue that counts all that is dropped; None: there is none."""
    outer, inner = handles(generation)
    if queues.bucket is None and queues.line is None:
        return None
    return inner if queues.bucket is not None and queues.line is not None else outer


def removal(index: int) -> bytes:
    """Take an interface's queues away; the kernel answers ENOENT where it has none of ours."""
    return _qdisc(_DELQDISC, index, _ACK)


def probe(kind: str) -> bytes:
    """Ask whether the kernel has queues of that kind, and have it load its module: without options it makes none. EINVAL: yes; ENOENT: no."""
    return _qdisc(_NEWQDISC, LOOPBACK, _ACK | CREATE | EXCL, name=kind)


def tbf(bucket: Bucket) -> bytes:
    """The options of a token bucket."""
    rate = _RATE.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(bucket.rate, MOST))
    none = _RATE.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, 0)
    parms = rate + none + struct.pack("=III", min(bucket.limit, MOST), 0, 0)
    exact = attribute(_TBF_RATE64, struct.pack("=Q", bucket.rate)) + attribute(_TBF_BURST, struct.pack("=I", bucket.burst))
    return attribute(_TBF_PARMS, parms) + exact


def netem(line: Line) -> bytes:
    """The options of a line with faults: a structure, no attributes."""
    latency, jitter = line.delay_ns >> _TICK_SHIFT, line.jitter_ns >> _TICK_SHIFT
    return _NETEM.pack(min(latency, MOST), line.limit, line.loss, 0, line.duplicate, min(jitter, MOST))


def drops_request(index: int, handle: int) -> bytes:
    """Ask for the figures of one queue."""
    # The answer is a notification, which comes to who asked only where he says so.
    return _qdisc(_GETQDISC, index, _ACK | ECHO, handle=handle, parent=0)


def drops_of(answer: bytes) -> int:
    """What a queue has dropped, of the body of the answer; 0: it does not say."""
    for kind, value in attributes(answer[_TC.size :], strict=False):
        if kind == _STATS2:
            for inner, figures in attributes(value, strict=False):
                if inner == _STATS_QUEUE and len(figures) >= 12:
                    return int(struct.unpack_from("=3I", figures)[2])
    return 0


def clsact(index: int) -> bytes:
    """Have filters look at what comes in by an interface, and what goes out by it, if they do not already."""
    return _qdisc(_NEWQDISC, index, _ACK | CREATE, handle=_CLSACT & 0xFFFF0000, parent=_CLSACT, name="clsact")


def program(index: int, direction: str, fd: int = MARK_FD, *, version: int = 4) -> bytes:
    """Have a program of BPF decide about packets of IP, ``"ingress"`` or ``"egress"``; see `clsact`. *fd*: of whoever sends this, see `Batch`."""
    options = attribute(_BPF_FD, struct.pack("=I", fd)) + attribute(_BPF_NAME, b"sandbox\0") + attribute(_BPF_FLAGS, struct.pack("=I", _BPF_DIRECT))
    body = _TC.pack(0, index, 1, _DIRECTIONS[direction], _FIRST[version]) + attribute(_KIND, b"bpf\0") + attribute(_OPTIONS, options)
    return message(_NEWTFILTER, _ACK | CREATE | EXCL, body)


def ifb(index: int, name: str, mtu: int) -> bytes:
    """Make an intermediate functional block, up: what is redirected to it waits in its queues, and goes on where it came from."""
    info = attribute(_INFO_KIND, b"ifb\0")
    body = _LINK.pack(0, 0, index, _UP, _UP) + attribute(_IFNAME, name.encode() + b"\0") + attribute(_MTU, struct.pack("=I", mtu))
    return message(_NEWLINK, _ACK | CREATE | EXCL, body + attribute(_LINKINFO, info))
