from __future__ import annotations

from itertools import pairwise

import pytest

from sandbox.errors import ProtocolError
from sandbox.net import shortcut
from sandbox.net.bpf import Assembler, Label, Reg

R0, R1, R2, R10 = Reg.R0, Reg.R1, Reg.R2, Reg.R10


def lines(program: Assembler) -> list[str]:
    code = program.assemble()
    return [code[start:end].hex() for start, end in pairwise(range(0, len(code) + 1, 8))]


def test_instructions_are_as_the_kernels_own_assembler_makes_them():
    """clang -target bpf."""
    program = Assembler()
    program.do(R0, "=", 7)  # r0 = 7
    program.do(R1, "+", R2)  # r1 += r2
    program.do(R1, "^", -1, narrow=True)  # w1 ^= -1
    program.load(R1, R2, 12, 2)  # r1 = *(u16 *)(r2 + 12)
    program.store(R10, -8, R1, 8)  # *(u64 *)(r10 - 8) = r1
    program.store(R1, 4, 5, 4)  # *(u32 *)(r1 + 4) = 5
    program.swap16(R1)  # r1 = be16 r1
    program.call(11)  # call 11
    program.exit()  # exit
    assert lines(program) == [
        "b700000007000000", "0f21000000000000", "a4010000ffffffff", "69210c0000000000", "7b1af8ff00000000", "6201040005000000",
        "dc01000010000000", "850000000b000000", "9500000000000000",
    ]  # fmt: skip


def test_jumps_count_from_behind_themselves():
    program, end = Assembler(), Label()
    program.jump_if(R1, ">", R2, end, narrow=False)
    program.jump_if(R1, "!=", 0xC0A80001, end)
    program.jump(end)
    program.load_number(R0, 0x1122334455667788)
    program.place(end)
    program.exit()
    assert lines(program) == [
        "2d21040000000000", "560103000100a8c0", "0500020000000000", "1800000088776655", "0000000044332211", "9500000000000000",
    ]  # fmt: skip


def test_a_map_is_named_by_its_descriptor():
    program = Assembler()
    program.load_map(R1, 9)
    assert lines(program) == ["1811000009000000", "0000000000000000"]


def test_labels_are_placed_once_behind_who_jumps_there():
    program, label = Assembler(), Label()
    program.place(label)
    with pytest.raises(ProtocolError, match="twice"):
        program.place(label)
    program.jump(label)
    with pytest.raises(ProtocolError, match="nowhere"):
        program.assemble()
    program = Assembler()
    program.jump(Label())
    with pytest.raises(ProtocolError, match="nowhere"):
        program.assemble()


@pytest.mark.parametrize("number", [1 << 32, -(1 << 31) - 1])
def test_numbers_that_do_not_fit_are_refused(number: int):
    program = Assembler()
    program.do(R0, "=", number)
    with pytest.raises(ProtocolError, match="instruction 0"):
        program.assemble()


def test_a_flow_is_known_for_less_than_sequence_numbers_take_to_come_round_by_half():
    assert shortcut.LIFE_NS / 1e9 * 60e9 / 8 < 1 << 31


def test_slots_and_ports_are_laid_out_as_programs_read_them():
    assert shortcut.KNOWN.size == 8
    for version, slot, flow in ((4, 32, 12), (6, 48, 24)):
        ip = shortcut.FAMILIES[version]
        assert (ip.slot.size, ip.flow.size) == (slot, flow)
        made = ip.slot.pack(1, 2, b"a" * ip.size, 3, b"m" * 6, b"b" * 6)
        assert made[8 : 8 + ip.size] == b"a" * ip.size
        assert made[ip.port] == 3
        assert made[ip.macs : ip.macs + 12] == b"m" * 6 + b"b" * 6
        assert ip.macs % 8 == 0
    assert shortcut.slot_of(shortcut.SLOTS + 3) == 3
    assert shortcut.swapped(0x1234) == 0x3412
