"""An assembler for classic BPF as seccomp(2) takes it: pure Python, bytes out, nothing of the kernel touched.

Rules of the machine (kernel: net/core/filter.c `bpf_check_classic`, kernel/seccomp.c `seccomp_check_filter`):
instructions are 8 bytes; jumps go forward only; a conditional jump reaches 255 instructions far, an unconditional one
any distance; loads are whole 32-bit words of struct seccomp_data; every path ends in a return; 4,096 instructions at most.

An `Assembler` is fed from top to bottom. Labels may be used before they are placed, never after (that would be a
jump backwards). Where a conditional jump would have to reach too far, `assemble` puts an unconditional one in between.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

__all__ = ["MAX_INSTRUCTIONS", "Assembler", "BpfError", "Instruction", "Label", "check", "decode"]

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
DATA_SIZE: Final = 64  # sizeof(struct seccomp_data)
_FORMAT: Final = struct.Struct("<HBBI")  # struct sock_filter; both architectures are little-endian

# <linux/bpf_common.h>: class | size or operation | mode or source
LD_ABS: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND_K: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JA: Final = 0x05  # BPF_JMP | BPF_JA
JEQ_K: Final = 0x15
JGT_K: Final = 0x25
JGE_K: Final = 0x35
RET_K: Final = 0x06  # BPF_RET | BPF_K
_CONDITIONAL: Final = frozenset({JEQ_K, JGT_K, JGE_K})

# Where the fields of struct seccomp_data lie.
NR: Final = 0
ARCH: Final = 4


def argument_low(index: int) -> int:
    """Return where the low word of system-call argument *index* (0 to 5) lies."""
    return 16 + 8 * index


def argument_high(index: int) -> int:
    """Return where the high word of system-call argument *index* (0 to 5) lies."""
    return 20 + 8 * index


# One instruction, as the kernel's struct sock_filter: code, jt, jf, k.
Instruction = tuple[int, int, int, int]


class BpfError(ValueError):
    """The program breaks a rule of the machine: a bug of whoever wrote it."""


# Plain classes and tuples here: to make attrs classes, at import, would take longer than to compile a filter.
class Label:
    """A place in a program: one `Assembler.place` says where, any number of jumps lead there."""

    __slots__ = ("item",)

    def __init__(self) -> None:
        self.item = -1  # index into the assembler's items


class _Item:
    """An instruction whose jumps still name labels. *far_then*, *far_else*: that way needs a jump in between."""

    __slots__ = ("code", "far_else", "far_then", "k", "otherwise", "then")

    def __init__(self, code: int, k: int = 0, then: Label | None = None, otherwise: Label | None = None) -> None:
        self.code = code
        self.k = k
        self.then = then
        self.otherwise = otherwise
        self.far_then = False
        self.far_else = False

    @property
    def size(self) -> int:
        return 1 + self.far_then + self.far_else


class Assembler:
    """Collects instructions; `assemble` turns them into a checked program."""

    def __init__(self) -> None:
        self._items: list[_Item] = []

    def place(self, label: Label) -> None:
        """Let *label* name the next instruction."""
        if label.item >= 0:
            raise BpfError("a label is placed twice")
        label.item = len(self._items)

    def load(self, offset: int) -> None:
        """Load the 32-bit word at *offset* of struct seccomp_data."""
        self._items.append(_Item(LD_ABS, offset))

    def and_with(self, k: int) -> None:
        """Keep only the bits *k* of what was loaded."""
        self._items.append(_Item(AND_K, k))

    def jump_if(self, code: int, k: int, then: Label, otherwise: Label) -> None:
        """Compare what was loaded with *k* (*code*: JEQ_K, JGT_K or JGE_K, unsigned), and go on at one of two labels."""
        if code not in _CONDITIONAL:
            raise BpfError(f"{code:#x} is no conditional jump")
        self._items.append(_Item(code, k, then, otherwise))

    def jump(self, to: Label) -> None:
        """Go on at *to*."""
        self._items.append(_Item(JA, 0, to))

    def ret(self, value: int) -> None:
        """End with the SECCOMP_RET_* *value*."""
        self._items.append(_Item(RET_K, value))

    def assemble(self) -> bytes:
        """Lay out and encode the program.

        Raises: BpfError: a label that was never placed, a jump backwards, or a rule of the machine broken.
        """
        starts = self._starts()
        while self._lengthen(starts):
            starts = self._starts()
        program = [instruction for index, item in enumerate(self._items) for instruction in self._encode(index, item, starts)]
        check(program)
        return b"".join(_FORMAT.pack(*instruction) for instruction in program)

    def _starts(self) -> list[int]:
        starts: list[int] = []
        at = 0
        for item in self._items:
            starts.append(at)
            at += item.size
        return starts

    def _lengthen(self, starts: Sequence[int]) -> bool:
        """Mark the conditional jumps that reach too far; True when there were new ones. It ends: marks are never taken back."""
        changed = False
        for index, item in enumerate(self._items):
            if item.code not in _CONDITIONAL:
                continue
            # Counted from the instruction after the comparison, before any jump in between.
            after = starts[index] + 1
            for attribute, label in (("far_then", item.then), ("far_else", item.otherwise)):
                if not getattr(item, attribute) and self._target(label, index, starts) - after > 255:
                    setattr(item, attribute, True)
                    changed = True
        return changed

    def _target(self, label: Label | None, index: int, starts: Sequence[int]) -> int:
        if label is None or label.item < 0 or label.item >= len(self._items):
            raise BpfError(f"instruction {index} jumps to a label that was not placed before an instruction")
        if label.item <= index:
            raise BpfError(f"instruction {index} jumps backwards")
        return starts[label.item]

    def _encode(self, index: int, item: _Item, starts: Sequence[int]) -> list[Instruction]:
        here = starts[index]
        if item.code == JA:
            return [_jump(self._target(item.then, index, starts) - here - 1)]
        if item.code not in _CONDITIONAL:
            return [(item.code, 0, 0, item.k)]
        jt = self._target(item.then, index, starts) - here - 1
        jf = self._target(item.otherwise, index, starts) - here - 1
        result: list[Instruction] = []
        if item.far_then:
            result.append(_jump(jt - 1))
            jt = 0
        if item.far_else:
            between = len(result)
            result.append(_jump(jf - between - 1))
            jf = between
        return [(item.code, jt, jf, item.k), *result]


def check(program: Sequence[Instruction]) -> None:
    """Apply the kernel's rules to a program.

    Raises: BpfError: the kernel would refuse it with EINVAL.
    """
    if not 0 < len(program) <= MAX_INSTRUCTIONS:
        raise BpfError(f"{len(program)} instructions; the kernel takes 1 to {MAX_INSTRUCTIONS}")
    for index, (code, jt, jf, k) in enumerate(program):
        if not 0 <= k <= 0xFFFFFFFF or not 0 <= jt <= 255 or not 0 <= jf <= 255:
            raise BpfError(f"instruction {index}: a number is out of range: {(code, jt, jf, k)}")
        if code == LD_ABS:
            if k >= DATA_SIZE or k % 4:
                raise BpfError(f"instruction {index}: loads from {k}; whole words below {DATA_SIZE} only")
        elif code in _CONDITIONAL or code == JA:
            reach = k if code == JA else max(jt, jf)
            if index + 1 + reach >= len(program):
                raise BpfError(f"instruction {index}: jumps behind the end")
        elif code not in (AND_K, RET_K):
            raise BpfError(f"instruction {index}: unknown code {code:#x}")
    if program[-1][0] != RET_K:
        raise BpfError("the last instruction is no return")


def decode(code: bytes) -> tuple[Instruction, ...]:
    """Turn bytes back into instructions, for printing and for tests.

    Raises: BpfError: the length is no multiple of 8.
    """
    if len(code) % _FORMAT.size:
        raise BpfError(f"{len(code)} bytes are no whole number of instructions")
    return tuple(_FORMAT.iter_unpack(code))


def _jump(distance: int) -> Instruction:
    return JA, 0, 0, distance
