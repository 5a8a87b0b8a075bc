"""Run Python where the kernel seems to lack system calls: under a seccomp filter that answers ENOSYS.

What `features.pretend` cannot show, because the C side makes the call or the probe itself is what is tried out, is shown so. The
filter is inherited by everything that the code starts, the launcher and the containers too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from sandbox.sec import ALLOW, Arch, Condition, Policy, compile_policy, fail, rule

_ENOSYS = 38
_INSTALL = """
import ctypes, struct, sys
program = bytes.fromhex(sys.argv.pop(1))
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(program, len(program))
fprog = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, fprog, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
"""


def python_without(
    calls: str, code: str, *arguments: str, when: Sequence[Condition] = (), error: int = _ENOSYS, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run *code* where none of *calls* (names, separated by blanks) exists; or where they answer *error* *when* they are given certain arguments."""
    policy = Policy((rule(calls, fail(error), *when),), default=ALLOW, unknown=ALLOW)
    program = compile_policy(policy, Arch.X86_64 if os.uname().machine == "x86_64" else Arch.AARCH64)
    command = [sys.executable, "-c", _INSTALL + code, program.hex(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
