"""Maps and programs of BPF, as far as the library has use for them: bpf(2). Descriptors are the caller's, and close-on-exec."""

from __future__ import annotations

import struct
from typing import Final

from sandbox._sys import calls

__all__ = ["ARRAY", "LRU_HASH", "SCHED_CLS", "TCX_INGRESS", "link", "load_program", "lookup", "make_map", "update"]

_MAP_CREATE, _LOOKUP, _UPDATE, _PROG_LOAD, _LINK_CREATE = 0, 1, 2, 5, 28
ARRAY, LRU_HASH = 2, 9  # BPF_MAP_TYPE_*
SCHED_CLS: Final = 3  # BPF_PROG_TYPE_*
TCX_INGRESS: Final = 46  # BPF_TCX_INGRESS
# What the programs are under does not bind who loads them: the kernel asks it of those that call functions which it gives to such programs only.
_LICENSE: Final = b"Dual MIT/GPL\0"
_NAME: Final = 16


def make_map(kind: int, key: int, value: int, entries: int, name: str) -> int:
    """Make a map of keys and values of these sizes. Raises: OSError: EPERM without CAP_BPF (Linux 5.8; before, CAP_SYS_ADMIN)."""
    return calls.bpf(_MAP_CREATE, struct.pack("=IIIIIII16s", kind, key, value, entries, 0, 0, 0, _named(name)))


def update(fd: int, key: bytes, value: bytes) -> None:
    """Put a value into a map. Raises: OSError."""
    _element(_UPDATE, fd, key, value)


def lookup(fd: int, key: bytes, size: int) -> bytes:
    """The value in a map, of *size* bytes. Raises: OSError: ENOENT."""
    return _element(_LOOKUP, fd, key, bytes(size))


def _element(command: int, fd: int, key: bytes, value: bytes) -> bytes:
    import ctypes

    buffers = [ctypes.create_string_buffer(data, len(data)) for data in (key, value)]
    calls.bpf(command, struct.pack("=IxxxxQQQ", fd, *map(ctypes.addressof, buffers), 0))
    return buffers[1].raw


def load_program(kind: int, code: bytes, name: str, *, log: int = 0) -> int:
    """Have the kernel check a program, and keep it as long as somebody uses it. *log*: bytes for what the verifier says, for tests.

    Raises: OSError: EPERM without CAP_BPF and CAP_NET_ADMIN; EACCES, EINVAL: it is refused.
    """
    import ctypes

    license_, room = ctypes.create_string_buffer(_LICENSE, len(_LICENSE)), ctypes.create_string_buffer(log or 1)
    instructions = ctypes.create_string_buffer(code, len(code))
    said = (1, log, ctypes.addressof(room)) if log else (0, 0, 0)
    attributes = struct.pack(
        "=IIQQIIQII16s", kind, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_), *said, 0, 0, _named(name)
    )
    try:
        return calls.bpf(_PROG_LOAD, attributes)
    except OSError as error:
        if log:
            raise OSError(error.errno, f"{error.strerror}\n{room.value.decode(errors='replace')}") from None
        raise


def link(program: int, interface: int, where: int) -> int:
    """Have a program see the packets of an interface here, as long as somebody has the link.

    Raises: OSError: EINVAL: *where* is unknown (tcx: Linux 6.6); ENODEV: there is no such interface.
    """
    return calls.bpf(_LINK_CREATE, struct.pack("=IIII", program, interface, where, 0))


def _named(name: str) -> bytes:
    return name.encode()[: _NAME - 1]
