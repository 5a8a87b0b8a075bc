"""The assembler, and `execute`: a BPF interpreter of our own that other tests run compiled filters with."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import hypothesis
import pytest
from hypothesis import strategies as st

from sandbox.sec import bpf
from sandbox.sec.bpf import AND_K, JA, JEQ_K, JGE_K, JGT_K, LD_ABS, RET_K, Assembler, BpfError, Label, check, decode


def seccomp_data(number: int, audit_arch: int, args: Sequence[int] = (0,) * 6) -> bytes:
    """Lay out struct seccomp_data of <linux/seccomp.h>; the instruction pointer is rubbish that no filter may depend on."""
    return struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit_arch, 0xDEADBEEFDEADBEEF, *args)


def execute(code: bytes, data: bytes) -> tuple[int, int]:
    """Run a program as the kernel would; return what it returned, and how many instructions it took. Reading behind the data is an error."""
    program = decode(code)
    at = accumulator = steps = 0
    while True:
        number, jt, jf, k = program[at]
        at += 1
        steps += 1
        if number == LD_ABS:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif number == AND_K:
            accumulator &= k
        elif number == JA:
            at += k
        elif number == JEQ_K:
            at += jt if accumulator == k else jf
        elif number == JGT_K:
            at += jt if accumulator > k else jf
        elif number == JGE_K:
            at += jt if accumulator >= k else jf
        elif number == RET_K:
            return k, steps
        else:
            raise AssertionError(f"unknown instruction {number:#x}")


def words(*values: int) -> bytes:
    return struct.pack("<16I", *values, *([0] * (16 - len(values))))


def ladder(rungs: int, padding: int) -> bytes:
    """Write `rungs` comparisons whose answers lie behind them all, with `padding` instructions in between: jumps of any length."""
    asm, answers = Assembler(), [Label() for _ in range(rungs)]
    asm.load(0)
    for number, answer in enumerate(answers):
        following = Label()
        asm.jump_if(JEQ_K, number, answer, following)
        asm.place(following)
    asm.ret(0xFFFF)
    for _ in range(padding):
        asm.ret(0xBAD)
    for number, answer in reversed(list(enumerate(answers))):
        asm.place(answer)
        asm.ret(number)
    return asm.assemble()


@hypothesis.given(rungs=st.integers(1, 400), padding=st.integers(0, 600), data=st.data())
def test_jumps_of_any_length_arrive(rungs: int, padding: int, data: st.DataObject):
    code = ladder(rungs, padding)
    number = data.draw(st.integers(0, rungs + 1))
    assert execute(code, words(number))[0] == (number if number < rungs else 0xFFFF)


def test_both_ways_of_a_jump_may_be_far():
    for otherwise_first in (False, True):
        asm, then, otherwise = Assembler(), Label(), Label()
        asm.load(0)
        asm.jump_if(JGE_K, 10, then, otherwise)
        for _ in range(300):
            asm.ret(0xBAD)
        for label, answer in ((otherwise, 2), (then, 1)) if otherwise_first else ((then, 1), (otherwise, 2)):
            asm.place(label)
            asm.ret(answer)
        code = asm.assemble()
        assert execute(code, words(10))[0] == 1
        assert execute(code, words(9))[0] == 2


def test_a_jump_of_255_needs_nothing_in_between():
    asm, near, answer = Assembler(), Label(), Label()
    asm.load(0)
    asm.jump_if(JEQ_K, 1, answer, near)
    asm.place(near)
    for _ in range(255):
        asm.ret(0xBAD)
    asm.place(answer)
    asm.ret(1)
    assert len(decode(asm.assemble())) == 258


def test_a_jump_backwards_is_refused():
    asm, back = Assembler(), Label()
    asm.place(back)
    asm.load(0)
    asm.jump(back)
    asm.ret(0)
    with pytest.raises(BpfError, match="backwards"):
        asm.assemble()


def test_a_label_never_placed_is_refused():
    asm = Assembler()
    asm.load(0)
    asm.jump(Label())
    asm.ret(0)
    with pytest.raises(BpfError, match="not placed"):
        asm.assemble()


def test_a_label_placed_twice_is_refused():
    asm, label = Assembler(), Label()
    asm.place(label)
    with pytest.raises(BpfError, match="twice"):
        asm.place(label)


def test_a_comparison_must_be_a_comparison():
    with pytest.raises(BpfError, match="no conditional jump"):
        Assembler().jump_if(JA, 0, Label(), Label())


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ([], "0 instructions"),
        ([(RET_K, 0, 0, 0)] * 4097, "4097 instructions"),
        ([(LD_ABS, 0, 0, 64), (RET_K, 0, 0, 0)], "loads from 64"),
        ([(LD_ABS, 0, 0, 2), (RET_K, 0, 0, 0)], "loads from 2"),
        ([(LD_ABS, 0, 0, 0)], "no return"),
        ([(JEQ_K, 1, 0, 0), (RET_K, 0, 0, 0)], "behind the end"),
        ([(JA, 0, 0, 1), (RET_K, 0, 0, 0)], "behind the end"),
        ([(0x40, 0, 0, 0), (RET_K, 0, 0, 0)], "unknown code"),
        ([(RET_K, 0, 0, 1 << 32)], "out of range"),
        ([(JEQ_K, 256, 0, 0), (RET_K, 0, 0, 0)], "out of range"),
    ],
)
def test_what_the_kernel_would_refuse_is_refused(program: list[bpf.Instruction], complaint: str):
    with pytest.raises(BpfError, match=complaint):
        check(program)


def test_half_an_instruction_is_refused():
    with pytest.raises(BpfError, match="12 bytes"):
        decode(bytes(12))
