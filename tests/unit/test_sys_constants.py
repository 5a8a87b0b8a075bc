"""Our numbers against those of the C headers, name by name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from sandbox._sys import calls, constants
from tests.support import needs

HEADERS = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/landlock.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <linux/nsfs.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
"""
# Not numbers of a C header, or of another width there (~0UL, enum).
OTHERWISE = {"X32_SYSCALL_BIT", "RLIM_INFINITY", "P_PIDFD"}


def compiled(lines: list[str], folder: Path) -> dict[str, int]:
    """What C says: the names that this machine's headers know."""
    body = "\n".join(lines)
    source = folder / "numbers.c"
    source.write_text(f"{HEADERS}\nint main(void) {{\n{body}\nreturn 0;\n}}\n")
    subprocess.run(["cc", "-w", "-o", folder / "numbers", source], check=True)
    out = subprocess.run([folder / "numbers"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


def show(name: str, expression: str) -> str:
    return f'#ifdef {expression}\nprintf("{name} %lld\\n", (long long)({expression}));\n#endif'


@needs("program:cc")
def test_every_constant_is_the_headers_number(tmp_path: Path):
    ours = {name: value for name, value in vars(constants).items() if re.fullmatch("[A-Z][A-Z0-9_]+", name) and name not in OTHERWISE}
    theirs = compiled([show(name, name) for name in ours], tmp_path)
    assert len(theirs) > 0.7 * len(ours)
    # Constants of unsigned int are negative as int in some headers.
    assert {name: value % (1 << 64) for name, value in theirs.items()} == {name: ours[name] % (1 << 64) for name in theirs}


@needs("program:cc")
def test_every_system_call_has_the_headers_number(tmp_path: Path):
    names = calls._NUMBERS["x86_64"].keys()
    theirs = compiled([show(name, f"__NR_{name}") for name in names], tmp_path)
    assert len(theirs) > 0.7 * len(names)
    assert theirs == {name: calls.number(name) for name in theirs}


def test_both_machines_have_the_same_system_calls():
    assert calls._NUMBERS["x86_64"].keys() == calls._NUMBERS["aarch64"].keys()
