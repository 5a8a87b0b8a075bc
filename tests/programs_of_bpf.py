"""What tests ask bpf(2): which programs and maps there are, and what a program makes of a packet."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from attrs import frozen

from sandbox._sys import bpf, calls
from sandbox.net.bpf import Assembler, Reg
from tests.leak.snapshot import descendants

_NEXT_PROGRAM, _PROGRAM, _MAP, _INFO, _RUN, _NEXT_KEY = 11, 13, 14, 15, 10, 4
_NAME_AT: Final = {_PROGRAM: 64, _MAP: 24}  # struct bpf_prog_info, bpf_map_info
_MAPS_AT: Final = 52  # bpf_prog_info: nr_map_ids, map_ids
_MOST_MAPS: Final = 64
_CONTEXT: Final = 192  # struct __sk_buff


def _ask(command: int, attributes: bytes) -> bytes:
    """As `calls.bpf`, but gives what the kernel has written into the attributes."""
    room = ctypes.create_string_buffer(attributes, len(attributes))
    result = ctypes.CDLL(None, use_errno=True).syscall(calls.number("bpf"), command, room, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return room.raw + struct.pack("=i", result)


@frozen
class Made:
    """A program or a map that the kernel has."""

    kind: int
    number: int
    name: str


def ours() -> set[Made]:
    """The programs and maps that this process and its descendants have now, whatever else runs on the machine.

    Maps by the descriptors of them; programs by the maps that they use, as some are held by an interface or a link alone.
    """
    found: set[Made] = set()
    held = _held_maps(os.getpid(), *descendants(os.getpid()))
    for number in held:
        with _opened(_MAP, number) as fd:
            if fd is not None:
                found.add(Made(_MAP, number, _info(_MAP, fd)[0]))
    for number in _numbers(_NEXT_PROGRAM):
        with _opened(_PROGRAM, number) as fd:
            name, maps = ("", set[int]()) if fd is None else _info(_PROGRAM, fd)
            if maps & held:
                found.add(Made(_PROGRAM, number, name))
    return found


def remaining(made: Iterable[Made]) -> set[Made]:
    """Those of them that the kernel still has, whoever holds them. A number is never given again."""
    found: set[Made] = set()
    for one in made:
        with _opened(one.kind, one.number) as fd:
            if fd is not None:
                found.add(one)
    return found


def write_ours(path: str) -> None:
    """Write down what `ours` gives, for a process that is about to be killed."""
    with open(path, "w") as file:
        json.dump([[one.kind, one.number, one.name] for one in ours()], file)


def written(path: Path) -> set[Made]:
    """What `write_ours` has written."""
    return {Made(*one) for one in json.loads(path.read_text())}


def _held_maps(*pids: int) -> set[int]:
    found: set[int] = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fdinfo").glob("*"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it, or its descriptor, has just gone
                found |= {int(line.split()[1]) for line in entry.read_text().splitlines() if line.startswith("map_id:")}
    return found


def _numbers(following: int) -> Iterator[int]:
    number = 0
    with suppress(FileNotFoundError):  # that was the last one
        while True:
            number = struct.unpack_from("=I", _ask(following, struct.pack("=III", number, 0, 0)), 4)[0]
            yield number


@contextmanager
def _opened(kind: int, number: int) -> Generator[int | None]:
    try:
        (fd,) = struct.unpack("=i", _ask(kind, struct.pack("=III", number, 0, 0))[-4:])
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _info(kind: int, fd: int) -> tuple[str, set[int]]:
    """Its name, and the numbers of the maps that it uses."""
    info, maps = ctypes.create_string_buffer(232), (ctypes.c_uint32 * _MOST_MAPS)()
    if kind == _PROGRAM:
        struct.pack_into("=IQ", info, _MAPS_AT, _MOST_MAPS, ctypes.addressof(maps))
    _ask(_INFO, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
    (count,) = struct.unpack_from("=I", info, _MAPS_AT) if kind == _PROGRAM else (0,)
    return info.raw[_NAME_AT[kind] :][:16].rstrip(b"\0").decode(), set(maps[: min(count, _MOST_MAPS)])


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
