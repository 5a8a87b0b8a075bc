"""The tables agree with the kernel headers installed here, and names and numbers find each other."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from sandbox.errors import UnsupportedError, UsageError
from sandbox.sec import syscalls
from sandbox.sec.syscalls import Arch, all_names, syscall_name, syscall_number, table
from tests.support import needs


def header_numbers(compiler: str) -> dict[str, int]:
    command = [compiler, "-dM", "-E", "-include", "asm/unistd.h", "-"]
    macros = dict(re.findall(r"#define __NR(\w+) (\w+)", subprocess.run(command, input="", text=True, capture_output=True, check=True).stdout))
    numbers = {}
    for name, value in macros.items():
        number = value
        while not number.isdecimal():  # an alias
            number = macros[number.removeprefix("__NR")]
        numbers[name.removeprefix("_")] = int(number)
    # Not calls, but marks and the aliases of 32- and 64-bit kernels.
    return {name: number for name, number in numbers.items() if name not in ("syscalls", "arch_specific_syscall") and not name.startswith("3264_")}


@pytest.mark.parametrize(
    ("arch", "compiler"),
    [
        pytest.param(Arch.X86_64, "gcc", marks=needs("program:gcc", "arch:x86_64")),
        pytest.param(Arch.AARCH64, "aarch64-linux-gnu-gcc", marks=needs("program:aarch64-linux-gnu-gcc")),
    ],
)
def test_tables_agree_with_the_headers(arch: Arch, compiler: str):
    headers = header_numbers(compiler)
    assert len(headers) > 300 or arch is Arch.AARCH64
    unlike = {name: number for name, number in headers.items() if table(arch).get(name) != number and number < 470}
    assert unlike == {}


@pytest.mark.parametrize("arch", list(Arch))
def test_every_number_has_one_name(arch: Arch):
    assert len(set(table(arch).values())) == len(table(arch))
    for name, number in table(arch).items():
        assert syscall_name(number, arch=arch) == name
        assert syscall_number(name, arch=arch) == number


def test_new_calls_have_one_number_everywhere():
    x86, arm = table(Arch.X86_64), table(Arch.AARCH64)
    assert {n: v for n, v in x86.items() if v >= 424} == {n: v for n, v in arm.items() if v >= 424}
    assert (x86["pidfd_send_signal"], x86["landlock_create_ruleset"], x86["mseal"], x86["file_setattr"]) == (424, 444, 462, 469)
    assert (x86["uretprobe"], x86["uprobe"], arm["wait4"], arm["clone"]) == (335, 336, 260, 220)


def test_what_has_no_name_says_so():
    assert syscall_name(9999, arch=Arch.X86_64) == "syscall 9999"
    assert syscall_name(245, arch=Arch.AARCH64) == "syscall 245"
    with pytest.raises(UsageError, match="no system call of aarch64"):
        syscall_number("open", arch=Arch.AARCH64)
    assert "open" in all_names()


def test_another_machine_is_unsupported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "box", "6.1", "#1", "riscv64")))
    syscalls._here.cache_clear()
    with pytest.raises(UnsupportedError, match="riscv64"):
        Arch.here()
    monkeypatch.undo()
    assert Arch.here().value == os.uname().machine
