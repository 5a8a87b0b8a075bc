"""What tests ask bpf(2): which programs and maps there are, and what a program makes of a packet."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterator
from typing import Final

from sandbox._sys import bpf, calls
from sandbox.net.bpf import Assembler, Reg

_NEXT_PROGRAM, _NEXT_MAP, _PROGRAM, _MAP, _INFO, _RUN, _NEXT_KEY = 11, 12, 13, 14, 15, 10, 4
_NAME_AT: Final = {_PROGRAM: 64, _MAP: 24}  # struct bpf_prog_info, bpf_map_info
_CONTEXT: Final = 192  # struct __sk_buff


def _ask(command: int, attributes: bytes) -> bytes:
    """As `calls.bpf`, but gives what the kernel has written into the attributes."""
    room = ctypes.create_string_buffer(attributes, len(attributes))
    result = ctypes.CDLL(None, use_errno=True).syscall(calls.number("bpf"), command, room, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return room.raw + struct.pack("=i", result)


def ours() -> set[tuple[str, int]]:
    """The programs and maps of this library's that the kernel has now, by name and number."""
    return {(name, number) for following, kind in ((_NEXT_PROGRAM, _PROGRAM), (_NEXT_MAP, _MAP)) for name, number in _all(following, kind)}


def _all(following: int, kind: int) -> Iterator[tuple[str, int]]:
    number = 0
    while True:
        try:
            number = struct.unpack_from("=I", _ask(following, struct.pack("=III", number, 0, 0)), 4)[0]
            (fd,) = struct.unpack("=i", _ask(kind, struct.pack("=III", number, 0, 0))[-4:])
        except FileNotFoundError:
            if kind_ended(following, number):
                return
            continue  # that one has just gone
        info = ctypes.create_string_buffer(232)
        try:
            _ask(_INFO, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
        finally:
            os.close(fd)
        name = info.raw[_NAME_AT[kind] :][:16].rstrip(b"\0").decode()
        if name.startswith("sandbox_") and name != "sandbox_probe":
            yield name, number


def kind_ended(following: int, number: int) -> bool:
    """Whether there is none behind that number."""
    try:
        _ask(following, struct.pack("=III", number, 0, 0))
    except FileNotFoundError:
        return True
    return False


def keys(fd: int, size: int) -> list[bytes]:
    """The keys of a map. While it changes, the kernel may list one twice, or one that is gone: until two lists are the same."""
    before = _listed(fd, size)
    for _ in range(100):
        now = _listed(fd, size)
        if now == before:
            return now
        before = now
        time.sleep(0.01)
    raise TimeoutError("the map does not cease to change")


def _listed(fd: int, size: int) -> list[bytes]:
    found: list[bytes] = []
    before, after = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
    address = 0
    while True:
        try:
            _ask(_NEXT_KEY, struct.pack("=IxxxxQQQ", fd, address, ctypes.addressof(after), 0))
        except FileNotFoundError:
            return found
        found.append(after.raw)
        before.raw, address = after.raw, ctypes.addressof(before)


def corrects_ipv6() -> bool:
    """Whether a program may say that what changes is an address of IPv6 (BPF_F_IPV6)."""
    do = Assembler()
    do.do(Reg.R2, "=", 50)
    for register in (Reg.R3, Reg.R4):
        do.do(register, "=", 0)
    do.do(Reg.R5, "=", 4 | 0x10 | 0x80)
    do.call(11)  # l4_csum_replace
    do.exit()
    program = bpf.load_program(bpf.SCHED_CLS, do.assemble(), "sandbox_probe")
    try:
        return run(program, bytes(100))[0] == 0
    finally:
        os.close(program)


def run(program: int, packet: bytes, *, mark: int = 0, gso_size: int = 0) -> tuple[int, bytes]:
    """What a program says of a packet that has come by ``lo``, and what it has made of it."""
    context = bytearray(_CONTEXT)
    struct.pack_into("=I", context, 8, mark)
    struct.pack_into("=I", context, 176, gso_size)
    came, went = ctypes.create_string_buffer(packet, len(packet)), ctypes.create_string_buffer(len(packet) + 256)
    given = ctypes.create_string_buffer(bytes(context), len(context))
    attributes = struct.pack(
        "=IIIIQQIIIIQQIII", program, 0, len(packet), len(went), ctypes.addressof(came), ctypes.addressof(went), 1, 0, len(given), 0,
        ctypes.addressof(given), 0, 0, 0, 0,
    )  # fmt: skip
    said = _ask(_RUN, attributes + bytes(4))
    _, verdict, _, length = struct.unpack_from("=IIII", said)
    return verdict, went.raw[:length]
