"""`Capture`: one container's traffic, into a file that tcpdump and Wireshark read.

Theory of operation
-------------------
A packet socket is opened inside the network's switch and bound to the container's port: nothing inside the container sees it, or can stop it.
The kernel writes packets into a ring that is mapped into this process (TPACKET_V3); a thread wakes for each block of it, and appends what is in
there to the file. A thread and not a process: nothing has to be started, found again and killed, a block (256 KiB) at a time leaves Python's lock
to others most of the time, and when this process ends in whatever way, socket, ring and thread end with it. What comes faster than the thread
takes it is dropped by the kernel, and counted; so memory is the ring's, whatever the container does.

In a forked child there is no such thread: socket and ring are closed there at once, or they would keep the switch.
"""

from __future__ import annotations

import array
import contextlib
import errno
import math
import mmap
import os
import select
import socket
import stat
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Self

from sandbox._types import Size, StrPath, to_count, to_size, to_text
from sandbox.errors import ClosedError, SetupError, UsageError
from sandbox.net import pcap

BLOCK: Final = 1 << 18
BLOCKS: Final = 64  # 16 MiB: about 50 ms of what two containers of a 2-core machine exchange at most
HAND_OVER_MS: Final = 8
LAST_S: Final = 1.0  # in which the kernel hands the last block over; 8 ms, where it has a CPU
LEAST_SNAPLEN: Final = 14
LEAST_BYTES: Final = 256
_SOL_PACKET: Final = 263
_RX_RING, _STATISTICS, _VERSION = 5, 6, 10  # PACKET_*
_V3: Final = 2
_ATTACH_FILTER: Final = 26
_ALL: Final = 0x0003  # ETH_P_ALL
_RETURN: Final = 0x06  # BPF_RET | BPF_K


class Capture:
    """A capture that runs while its ``with`` block does; made by `Container.capture`.

    Every Ethernet frame from and to the container, as it passes its port: what it sends before its `Shape`, what it gets after that. All
    properties may be read by any thread, during the block and after it. The file is complete when the block has ended.
    """

    def __init__(
        self,
        open_socket: Callable[[], tuple[int, str]],
        path: StrPath,
        *,
        snaplen: int = 65535,
        max_bytes: Size = "256M",
        max_packets: int | None = None,
    ) -> None:
        """*open_socket* gives a packet socket of no protocol, which is ours then, and the name of the interface where it is."""
        self._open_socket = open_socket
        self._path = os.fsdecode(to_text(path, what="path"))
        self._snaplen = to_count(snaplen, what="snaplen", least=LEAST_SNAPLEN, most=pcap.MOST_SNAPLEN)
        most = to_size(max_bytes, what="max_bytes", least=LEAST_BYTES)
        self._budget = pcap.Budget(most - pcap.FILE_HEAD.size, None if max_packets is None else to_count(max_packets, what="max_packets"))
        self._most = most
        self._owner = os.getpid()
        self._thread: threading.Thread | None = None
        self._stop_fd = -1
        self._ring: Ring | None = None
        self._dropped = 0
        self._error: OSError | None = None
        self._is_over = False

    def __repr__(self) -> str:
        state = "not started" if self._thread is None else "over" if self._is_over else "running"
        return f"Capture({self._path!r}, {state}, {self.packets} packets, {self.dropped} dropped)"

    # ---- What was found ----

    @property
    def packets(self) -> int:
        """How many are in the file."""
        return self._budget.taken

    @property
    def bytes(self) -> int:
        """How long the file is."""
        return self._most - self._budget.octets

    @property
    def dropped(self) -> int:
        """How many packets came faster than they could be written, and are not in the file."""
        return self._dropped

    @property
    def is_full(self) -> bool:
        """Whether it ended because of *max_bytes* or *max_packets*: what came later is not in the file, and not counted."""
        return self._budget.is_spent

    # ---- Life ----

    def start(self) -> Self:
        """Make the file, and begin. Raises: UsageError: it was started before; OSError: the file cannot be made; SetupError; ClosedError."""
        if self._thread is not None:
            raise UsageError("the capture was started before; make another one")
        with contextlib.ExitStack() as stack:
            ring = Ring(*self._open_socket(), snaplen=self._snaplen)
            stack.callback(ring.close)
            file = _made_anew(self._path)
            stack.callback(os.close, file)
            _write(file, pcap.file_head(self._snaplen))
            stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, stop)
            thread = threading.Thread(target=self._run, args=(ring, file, os.dup(stop)), name="sandbox-capture", daemon=True)
            self._ring, self._stop_fd = ring, stop
            _captures.add(self)
            try:
                thread.start()
            except RuntimeError as error:
                self._ring, self._stop_fd = None, -1
                raise SetupError("start a thread", errno.EAGAIN, step="capture", hint="this process or its user has as many as it may") from error
            stack.pop_all()
        self._thread = thread
        return self

    def stop(self) -> None:
        """Write what is there by now, and end; twice is fine. `with` does it.

        Raises: OSError: the file could not be written (no space left, say); what is in it until then is good.
        """
        stop, self._stop_fd = self._stop_fd, -1
        if self._thread is None or stop < 0:
            return
        try:
            if self._owner == os.getpid():
                os.eventfd_write(stop, 1)
                self._thread.join()
        finally:
            os.close(stop)
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self.stop()
        except OSError:
            if kind is None:  # else the first error is the one to be told
                raise

    def abandon(self) -> None:
        """In a forked child: let go of its copies."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()

    # ---- The thread ----

    def _run(self, ring: Ring, file: int, stop: int) -> None:
        try:
            self._copy_until_stopped(ring, file, stop)
        except OSError as error:
            self._error = error
        finally:
            self._ring = None
            self._is_over = True
            ring.close()
            os.close(file)
            os.close(stop)

    def _copy_until_stopped(self, ring: Ring, file: int, stop: int) -> None:
        poll = select.poll()
        for fd in (ring.fileno(), stop):
            poll.register(fd, select.POLLIN)
        while not self._budget.is_spent:
            found = dict(poll.poll())
            is_last = stop in found or bool(found.get(ring.fileno(), 0) & ~select.POLLIN)  # an error: the interface has gone
            if is_last:
                ring.halt()
            self._copy(ring, file)
            if is_last:
                self._copy_last(ring, file)
                return

    def _copy(self, ring: Ring, file: int) -> None:
        while not self._budget.is_spent and (block := ring.take()) is not None:
            _write(file, b"".join(pcap.records(block, self._snaplen, self._budget)))
        self._dropped += ring.drops()

    def _copy_last(self, ring: Ring, file: int) -> None:
        """What is in the block that the kernel is at: it hands that over a moment later."""
        deadline = time.monotonic() + LAST_S
        poll = select.poll()
        poll.register(ring.fileno(), select.POLLIN)
        while ring.has_more and not self._budget.is_spent and (left := deadline - time.monotonic()) > 0:
            poll.poll(math.ceil(min(left * 1000, HAND_OVER_MS)))
            self._copy(ring, file)


def _made_anew(path: str) -> int:
    """A file for its owner only, in the place of a file or a link that is there: what passed over a network is not for everybody's eyes.

    Who may write to the directory, a container perhaps, gets nothing written through a link or into a file of his. What is written to as it is: a
    character device, which only the host's root can have put there, and a FIFO of the caller's own.

    Raises: OSError; UsageError: it is of another kind.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return _file(path)
    if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
        return _file(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not _is_stream(found):
        raise UsageError(f"path: {path!r} is a socket, a disk, or somebody else's FIFO; name a file")
    stream = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not _is_stream(os.fstat(stream)):  # exchanged a moment ago
        os.close(stream)
        raise UsageError(f"path: {path!r} is not what it was a moment ago; name a file in a directory of your own")
    return stream


def _is_stream(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) or (stat.S_ISFIFO(found.st_mode) and found.st_uid == os.geteuid())


def _file(path: str) -> int:
    aside = os.path.join(os.path.dirname(path), f".capture-{os.urandom(8).hex()}")
    file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.rename(aside, path)
    except BaseException:
        os.close(file)
        with contextlib.suppress(OSError):  # the first failure is the one to be told
            os.unlink(aside)
        raise
    return file


class Ring:
    """A packet socket at one interface, with its ring. Owns *fd*. For one thread at a time."""

    def __init__(self, fd: int, interface: str, *, snaplen: int) -> None:
        self._at = 0
        with contextlib.ExitStack() as stack:
            self._sock = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0, fileno=fd))
            try:
                self._filter(snaplen)
                self._sock.setsockopt(_SOL_PACKET, _VERSION, _V3)
                request = pcap.REQUEST.pack(BLOCK, BLOCKS, BLOCK, BLOCKS, HAND_OVER_MS, 0, 0)
                self._sock.setsockopt(_SOL_PACKET, _RX_RING, request)
                self._map = mmap.mmap(fd, BLOCK * BLOCKS)
                stack.callback(self._map.close)
                self._sock.bind((interface, _ALL))  # only now does anything arrive
                self._sock.setblocking(False)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    raise ClosedError("the container has ended, or left the network") from error
                raise SetupError("capture packets", error.errno or errno.EIO, step="capture") from error
            stack.pop_all()

    def _filter(self, length: int) -> None:
        """Have the kernel keep *length* bytes of each packet from now on; of none, with 0."""
        program = array.array("B", struct.pack("=HBBI", _RETURN, 0, 0, length))
        self._sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", 1, program.buffer_info()[0]))

    def fileno(self) -> int:
        return self._sock.fileno()

    def take(self) -> bytes | None:
        """A copy of the next block, which the kernel has again; None: it has not handed it over yet.

        A copy, as a view of the ring would keep it mapped, also in a forked child.
        """
        start = self._at * BLOCK
        status = start + pcap.STATUS_AT
        if not self._map[status] & pcap.USER and not self._map[status + 3] & pcap.USER:  # the first byte, or the last where those come first
            return None
        length = min(pcap.BLOCK.unpack_from(self._map, start)[3], BLOCK)
        block = self._map[start : start + max(length, pcap.BLOCK.size)]
        packets = start + pcap.PACKETS_AT
        self._map[packets : packets + 4] = bytes(4)  # for `has_more`, until the kernel begins with it
        self._map[status : status + 4] = bytes(4)  # last: it is the kernel's from here on
        self._at = (self._at + 1) % BLOCKS
        return block

    @property
    def has_more(self) -> bool:
        """Whether there are packets in the next block, whosever it is."""
        return bool(pcap.BLOCK.unpack_from(self._map, self._at * BLOCK)[1])

    def drops(self) -> int:
        """How many packets found no room since the last call."""
        found: int = pcap.STATISTICS.unpack(self._sock.getsockopt(_SOL_PACKET, _STATISTICS, pcap.STATISTICS.size))[1]
        return found

    def halt(self) -> None:
        """Take nothing more."""
        self._filter(0)

    def close(self) -> None:
        """Twice is fine."""
        self._map.close()
        self._sock.close()


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


_captures: weakref.WeakSet[Capture] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for capture in list(_captures):
        capture.abandon()
    _captures.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
