"""An assembler for BPF as bpf(2) takes it for filters of packets: pure Python, bytes out, nothing of the kernel touched.

An instruction is 8 bytes: operation, two registers, a distance, a number (Documentation/bpf/standardization/instruction-set.rst). r1 to r5 carry
arguments and are lost in a call, r0 what it gives; r6 to r9 stay; r10 is the end of 512 bytes of stack. The kernel's verifier says whether a
program is sound, so nothing of that is checked here: only that numbers fit and that labels are placed, once, behind those who jump there.

An `Assembler` is fed from top to bottom. Where an operation takes a register or a number, `Reg` says which it is.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from sandbox.errors import ProtocolError

_FORMAT: Final = struct.Struct("<BBhi")  # struct bpf_insn; both architectures are little-endian
SIZES: Final = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}  # BPF_B, BPF_H, BPF_W, BPF_DW
_LDX, _ST, _STX, _ALU, _JMP, _JMP32, _ALU64 = 0x61, 0x62, 0x63, 0x04, 0x05, 0x06, 0x07  # classes; the first three with BPF_MEM
_BY_REGISTER: Final = 0x08  # BPF_X
_LD_IMM64, _MAP_FD = 0x18, 1  # BPF_PSEUDO_MAP_FD
_CALL, _EXIT, _GO, _SWAP = 0x85, 0x95, 0x05, 0xDC  # of the last: BPF_ALU | BPF_END | BPF_TO_BE
_OPERATIONS: Final = {"+": 0x00, "-": 0x10, "|": 0x40, "&": 0x50, "<<": 0x60, ">>": 0x70, "^": 0xA0, "=": 0xB0}
_COMPARISONS: Final = {"==": 0x10, ">": 0x20, ">=": 0x30, "!=": 0x50, "<": 0xA0, "<=": 0xB0}  # of numbers without a sign


class Reg(enum.IntEnum):
    """A register."""

    R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)


class Label:
    """A place in a program."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = -1


class Assembler:
    """Collects instructions; `assemble` turns them into bytes."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, Label | None]] = []

    def _add(self, code: int, into: int = 0, source: int = 0, distance: int = 0, *, number: int = 0, to: Label | None = None) -> None:
        if 1 << 31 <= number < 1 << 32:  # as the kernel has it: 32 bits, whatever they mean
            number -= 1 << 32
        self._code.append((code, into | source << 4, distance, number, to))

    def load(self, into: Reg, at: Reg, offset: int, size: int) -> None:
        """``into = *(at + offset)``, of *size* bytes without a sign."""
        self._add(_LDX | SIZES[size], into, at, offset)

    def store(self, at: Reg, offset: int, value: Reg | int, size: int) -> None:
        """``*(at + offset) = value``."""
        if isinstance(value, Reg):
            self._add(_STX | SIZES[size], at, value, offset)
        else:
            self._add(_ST | SIZES[size], at, 0, offset, number=value)

    def do(self, into: Reg, operation: str, value: Reg | int, *, narrow: bool = False) -> None:
        """``into = into operation value``; ``=`` puts it there. *narrow*: of the lower 32 bits, and the others become 0."""
        code = _OPERATIONS[operation] | (_ALU if narrow else _ALU64)
        if isinstance(value, Reg):
            self._add(code | _BY_REGISTER, into, value)
        else:
            self._add(code, into, number=value)

    def swap16(self, into: Reg) -> None:
        """Between the network's order of two bytes and ours; what is above them is lost."""
        self._add(_SWAP, into, number=16)

    def load_number(self, into: Reg, number: int) -> None:
        """A number of 64 bits."""
        self._add(_LD_IMM64, into, number=number & 0xFFFFFFFF)
        self._add(0, number=number >> 32)

    def load_map(self, into: Reg, fd: int) -> None:
        """The map with that descriptor, of whoever loads the program."""
        self._add(_LD_IMM64, into, _MAP_FD, number=fd)
        self._add(0)

    def jump_if(self, left: Reg, comparison: str, right: Reg | int, to: Label, *, narrow: bool = True) -> None:
        """Go on at *to* if so. *narrow*: the lower 32 bits are compared (Linux 5.1); else 64, and a number is extended by its sign."""
        code = _COMPARISONS[comparison] | (_JMP32 if narrow else _JMP)
        if isinstance(right, Reg):
            self._add(code | _BY_REGISTER, left, right, to=to)
        else:
            self._add(code, left, number=right, to=to)

    def jump(self, to: Label) -> None:
        """Go on at *to*."""
        self._add(_GO, to=to)

    def call(self, helper: int) -> None:
        """Have the kernel's function with that number called."""
        self._add(_CALL, number=helper)

    def exit(self) -> None:
        """End; r0 is the answer."""
        self._add(_EXIT)

    def place(self, label: Label) -> None:
        """*label* is here."""
        if label.at >= 0:
            raise ProtocolError("a label of a BPF program is placed twice")
        label.at = len(self._code)

    def assemble(self) -> bytes:
        """The program. Raises: ProtocolError: a label was not placed behind a jump to it, or a number does not fit."""
        found: list[bytes] = []
        for at, (code, registers, distance, number, to) in enumerate(self._code):
            if to is not None:
                distance = to.at - at - 1  # noqa: PLW2901
                if to.at >= len(self._code) or distance < 0:
                    raise ProtocolError("a label of a BPF program is nowhere behind a jump to it")
            try:
                found.append(_FORMAT.pack(code, registers, distance, number))
            except struct.error as error:
                raise ProtocolError(f"instruction {at} of a BPF program: {error}") from error
        return b"".join(found)
